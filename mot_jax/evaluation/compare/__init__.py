"""Step matching: at what share of a reference's steps, FLOPs and time another run reaches its final loss."""
