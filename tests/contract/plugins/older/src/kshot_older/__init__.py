raise RuntimeError("nobody should import this")
