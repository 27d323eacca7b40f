"""Fail on import; the manifest has a higher API level, so that kshot must not import this module."""

raise RuntimeError("nobody should import this")
