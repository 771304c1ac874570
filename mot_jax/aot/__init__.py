"""The train step compiled for machines that are not there: whether it fits, what it costs, what it sends."""
