"""The rules that a component must keep to satisfy its protocol, one file for each group of rules."""
