"""Rules for encoders."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kshot.errors import KshotError
from kshot.spec import TaskSpec
from kshot.testing.compare import changed, difference, gap, tolerance, watched
from kshot.testing.rulebook.copies import copies_of
from kshot.testing.rulebook.process import left_alone
from kshot.testing.rulebook.rule import Rule, add, always, broken, named
from kshot.testing.subjects import EncoderSubject

Check = Callable[[EncoderSubject], None]


def encoder_rule(unless: Callable[[EncoderSubject], str | None] = always) -> Callable[[Check], Check]:
    """Register a check as a rule for encoders; ``unless`` returns the reason why it does not apply, or None."""

    def put(check: Check) -> Check:
        add(Rule(named(check), "encoders", check, unless))
        return check

    return put


def embed(module: nn.Module, x: Tensor) -> Tensor:
    """Embed inputs [n, *input] in the mode that the module is in, without a graph.

    Raises:
        Broken: the result is not a tensor [n, D] of finite numbers.
    """
    with torch.no_grad():
        z = module(x)
    if not isinstance(z, Tensor):
        broken(f"got a {type(z).__name__}, expected a tensor [n, D]")
    if z.ndim != 2 or len(z) != len(x):
        broken(f"got embeddings of shape {tuple(z.shape)} of {len(x)} inputs, expected [{len(x)}, D]")
    if not bool(torch.isfinite(z).all()):
        broken("got embeddings that are NaN or infinite, expected finite numbers")
    return z


def without_tune(subject: EncoderSubject) -> str | None:
    """Return why the rule on ``tune`` does not apply."""
    return None if subject.source.takes("tune") else "it has no option tune"


@encoder_rule()
def embeds_each_input(subject: EncoderSubject) -> None:
    """An encoder is an ``nn.Module`` from inputs [n, *input] of the tasks to finite embeddings [n, D], for any n, with
    the same D for all inputs of the tasks. It is returned ready to use: no other call is needed first.
    """
    module = subject.build()
    if not isinstance(module, nn.Module):
        broken(f"got a {type(module).__name__}, expected a torch.nn.Module")
    sizes = {embed(module, subject.inputs(n)).shape[1] for n in (1, 2, 5)}
    if len(sizes) != 1 or 0 in sizes:
        broken(f"got embeddings of {sorted(sizes)} numbers for 1, 2 and 5 inputs, expected one number above 0")


@encoder_rule()
def tells_inputs_apart(subject: EncoderSubject) -> None:
    """Different inputs have different embeddings."""
    z = embed(subject.build(), subject.inputs(4))
    if all(torch.equal(z[0], other) for other in z[1:]):
        broken("got the same embedding for four different inputs, expected different ones")


@encoder_rule()
def is_deterministic(subject: EncoderSubject) -> None:
    """In evaluation mode the same inputs have the same embeddings, bit for bit, and so have those of a second encoder
    that was built with the same options.
    """
    x, module = subject.inputs(3), subject.build()
    expected = embed(module, x)
    for what, other in (("a second call", module), ("a second encoder", subject.build())):
        if not torch.equal(expected, embed(other, x)):
            broken(f"got other embeddings from {what}, expected the same; draw nothing at random in evaluation mode")


@encoder_rule()
def embeds_each_input_alone(subject: EncoderSubject) -> None:
    """An embedding does not depend on the other inputs beside it, or on its place among them."""
    x, module = subject.inputs(5), subject.build()
    together = embed(module, x)
    order = torch.tensor([3, 0, 4, 1, 2])
    alone = torch.cat([embed(module, one[None]) for one in x])
    for what, expected, other in (
        ("in another order", together[order], embed(module, x[order])),
        ("one by one", together, alone),
    ):
        if (far := gap(expected, other)) > tolerance(together.dtype):
            broken(
                f"got embeddings that differ by {far:.2g} of the greatest number for inputs {what}, expected the same; "
                "normalise by fixed statistics in evaluation mode"
            )


@encoder_rule()
def embedding_changes_nothing(subject: EncoderSubject) -> None:
    """Embedding in evaluation mode changes neither the inputs nor the encoder: its weights, buffers, modes and what is
    trained of it. It draws nothing from global random generators, and changes no setting of the process.
    """
    module, x = subject.build(), subject.inputs(3)
    if module.training:
        broken("got an encoder in training mode, expected evaluation mode")
    before, inputs = watched(module), x.clone()
    with left_alone("embedding", draws=False):
        embed(module, x)
    if not torch.equal(x, inputs):
        broken("got changes in the inputs, expected none; don't use operations in place on them")
    names = [name for name in changed(before, watched(module)) if "random" not in name]
    if names:
        broken(f"got changes in {', '.join(names[:5])}, expected none")


@encoder_rule()
def building_leaves_the_process_alone(subject: EncoderSubject) -> None:
    """Building an encoder changes no setting of the process."""
    with left_alone("building the encoder"):
        subject.build()


@encoder_rule(unless=without_tune)
def tune_decides_what_is_trained(subject: EncoderSubject) -> None:
    """``tune="none"`` freezes all weights, ``tune="all"`` none of them, and ``tune="head"`` all but a part of them.
    The embeddings before training are the same.
    """
    x = subject.inputs(2)
    expected = embed(subject.build(tune="none"), x)
    for tune in ("none", "all", "head"):
        try:
            module = subject.build(tune=tune)
        except KshotError:
            if tune == "head":  # an encoder without weights
                continue
            raise
        trained = [p.requires_grad for p in module.parameters()]
        right = {"none": not any(trained), "all": all(trained), "head": any(trained)}
        if not right[tune]:
            broken(f"tune={tune!r}: got {sum(trained)} of {len(trained)} parameters to be trained")
        if (far := gap(expected, embed(module, x))) > tolerance(x.dtype):
            broken(f"tune={tune!r}: got embeddings that differ by {far:.2g} from those with 'none', expected the same")


@encoder_rule()
def state_is_complete(subject: EncoderSubject) -> None:
    """The ``state_dict`` of an encoder has everything that its embeddings depend on: a second encoder that loads it
    has the same embeddings, also after the weights have changed.
    """
    module, other, x = subject.build(), subject.build(), subject.inputs(3)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * p.abs().mean() * torch.randn(p.shape, generator=generator).to(p))
    other.load_state_dict(module.state_dict())
    if where := difference({"embedding": embed(module, x)}, {"embedding": embed(other, x)}):
        broken(f"got other embeddings from an encoder that loaded the state, expected the same: {where}")


@encoder_rule()
def copies_embed_alike(subject: EncoderSubject) -> None:
    """An encoder can be pickled and deep-copied, before and after use, and the copy has the same embeddings."""
    module, x = subject.build(), subject.inputs(2)
    for when in ("before use", "after use"):
        pairs = list(copies_of(module, when))
        expected = embed(module, x)
        for what, other in pairs:
            if (far := gap(expected, embed(other, x))) > 0:
                broken(f"got embeddings that differ by {far:.2g} from an encoder {what}, expected the same")


@encoder_rule()
def refuses_other_inputs(subject: EncoderSubject) -> None:
    """For inputs of other shapes an encoder embeds them, or refuses them when it is built, by an error of kshot that
    names the shape.
    """
    for shape in ((2, 3, 4, 5), (7,), (1, 1)):
        spec = TaskSpec(kind="classification", input_shape=shape, way=2, shot=1, query=1)
        try:
            module = subject.source.build(spec)
        except KshotError as refusal:
            if not all(str(size) in str(refusal) for size in shape):
                broken(f"got the error {str(refusal)!r} for inputs of shape {list(shape)}, expected one that names it")
            continue
        embed(module, torch.zeros(2, *shape))
