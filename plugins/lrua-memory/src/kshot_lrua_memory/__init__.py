"""A memory that writes to its least recently used slots (Santoro et al. 2016)."""

from kshot_lrua_memory.memory import LRUAMemory, LRUAState

__all__ = ["LRUAMemory", "LRUAState"]
