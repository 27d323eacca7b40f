"""Read and write the checkpoints of a run folder, in programs that look into them or change them.

To train, resume, compare and use runs, see ``kshot.runs``. The engine reads and writes its checkpoints by these
functions too, so what they write can be resumed.

Example:
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "0.pt"
    ...     save_checkpoint(path, {"iteration": 0})
    ...     load_checkpoint(path)
    {'iteration': 0}
"""

from kshot._engine.run_folder import load_checkpoint, save_checkpoint

__all__ = ["load_checkpoint", "save_checkpoint"]
