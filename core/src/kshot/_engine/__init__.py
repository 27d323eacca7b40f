"""Implement the episodic engine. Private: plugins use ``kshot.Engine`` and the public modules.

Reading order: ``gradient`` (a meta-batch to ``.grad``), ``evaluation`` and ``result``, ``engine``; then what they use.
"""
