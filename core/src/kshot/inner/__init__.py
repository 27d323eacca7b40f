"""The inner loop: gradient descent on the support of one task, and its lifting over the tasks of a meta-batch.

Reading order: ``descent`` (the loop, written for one task), ``parts`` (the loop for a part of the parameters),
``lifting`` (from one task to B of them), ``cost`` (the choice between vmap and a loop), ``chunks`` (some tasks that run
together), ``vmap_norms`` (which corrects the second derivatives that ``torch.func.vmap`` computes through normalisation
layers), and then ``replays``, ``identity``, ``programs``, ``traces``, ``tracing``, ``simplify`` and ``guards`` (which
record the operations of a meta-batch and repeat them without the Python around them), and ``graphs`` (which makes a GPU
run a recording by one launch). ``looping`` has the decorator ``per_episode``.
"""

from kshot.inner.descent import (
    Loss,
    State,
    Tensors,
    Update,
    adam,
    check_descent,
    descend,
    gradient_at,
    keep_buffers,
    sgd,
    take_steps,
)
from kshot.inner.lifting import Lift, Strategy, has_inner_loop, per_episode
from kshot.inner.parts import descend_part

__all__ = [
    "Lift",
    "Loss",
    "State",
    "Strategy",
    "Tensors",
    "Update",
    "adam",
    "check_descent",
    "descend",
    "descend_part",
    "gradient_at",
    "has_inner_loop",
    "keep_buffers",
    "per_episode",
    "sgd",
    "take_steps",
]
