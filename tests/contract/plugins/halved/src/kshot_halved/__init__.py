"""The part that stays."""
