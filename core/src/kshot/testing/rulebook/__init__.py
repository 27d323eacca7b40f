"""The rules that a component must keep to satisfy its protocol, one file per group of rules."""
