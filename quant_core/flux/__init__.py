"""FLUX: its names, its sizes, and its tensors."""
