"""Training a draft: what it starts from, the texts, the losses, the loop and the folder of a run."""
