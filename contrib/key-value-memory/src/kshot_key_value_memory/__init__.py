"""A small differentiable memory of keys and values."""

from kshot_key_value_memory.memory import KeyValueMemory, KeyValueState

__all__ = ["KeyValueMemory", "KeyValueState"]
