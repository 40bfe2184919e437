"""Training of a draft: its sources, the texts, the losses, the loop and the folder of a run."""
