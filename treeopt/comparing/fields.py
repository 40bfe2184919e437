"""The fields that things may not differ in, unless it is asked for. It loads nothing, so that the command line can name them."""

FIELDS = {
    "target": "figures of other models say nothing of one another",
    "draft": "the draft decides what is accepted and how long drafting takes",
    "weights": "models of the same names have other weights",
    "device": "times are those of one GPU or processor",
    "engine": "times are those of one engine",
    "batch": "a pass over several sequences takes other times",
    "threads": "times on a processor are those of so many threads",
    "dtype": "times and outputs are those of one number type",
    "offloaded": "offloaded passes take other times",
    "tensor_parallel": "a target that several processes hold takes other times",
    "temperature": "the target's sampling decides what is accepted",
    "top_p": "the target's sampling decides what is accepted",
    "method": "acceptance on the target's own texts is not that on the data set's",
    "dataset": "acceptance depends on the text",
}
"""The fields that may not differ, each with the reason."""
