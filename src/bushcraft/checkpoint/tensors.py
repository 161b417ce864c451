"""A run's tensors in a depot: saved as the parts of any ranks, loaded as the parts of any others."""

from bushcraft.checkpoint.load_parts import load_part, load_parts, load_tensor, verify_tensors
from bushcraft.checkpoint.merge_entries import merge_entries
from bushcraft.checkpoint.save_parts import save_parts, save_tensors

__all__ = ["load_part", "load_parts", "load_tensor", "merge_entries", "save_parts", "save_tensors", "verify_tensors"]
