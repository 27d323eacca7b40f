"""DEML: Zhou, Wu & Li, "Deep meta-learning: learning to learn in the concept space", 2018 (1802.03596).

Letters: B meta-batch, N way, S support size, n examples, E external examples of a task, C external classes.
G is the concept generator, M the meta-learner, D the discriminator, and theta_G, theta_M, theta_D their parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import Episode, LearnerFactory, Metrics, Needs, Predictor, Support, TaskSpec, Training
from kshot.errors import MisfitError
from kshot.functional import full_precision
from kshot.nn import EncoderChoice, NetworkChoice, infer_output_shape
from kshot.nn import encoder as build_encoder
from kshot.registry import Range, check_values
from kshot_concept.discriminator import Discriminator
from kshot_concept.meta import check_meta, concept_spec, on_concepts


class Concept(nn.Module):
    """Train a learner on concepts, which are the outputs of a network that also learns to classify an external set.

    The joint objective is (section 3)

        min over theta_G, theta_M, theta_D of L_T(theta_M, theta_G) + lambda L_(x,y)(theta_D, theta_G).

    L_T is the objective of the meta-learner on tasks whose inputs are concepts. L_(x,y) is the cross-entropy of the
    discriminator on the external examples of the episodes. G does not adapt to a task; M adapts as it does alone.

    Args:
        spec: the specification of the tasks. Unless ``discriminator_weight`` is 0, the tasks must have external
            examples, see the view ``with-external``.
        meta: M, a learner for tasks of vectors or of whatever G returns. The command line takes its name and its
            options: ``--learner.meta=metasgd --learner.meta.inner_steps=1``. In Python also a function from a spec to
            a learner.
        generator: G, an encoder: ``auto``, ``conv4``, ``strided-conv4``, ``mlp``, ``linear``, a module from [n, *input]
            to [n, *concept], or ``identity``, with which the inputs themselves are the concepts.
        width: channels of the convolutions of G, units of ``mlp``, outputs of ``linear``.
        normalisation: the statistics by which batch norm of G normalises at evaluation, see ``kshot.nn.Encoder``. While
            training, all examples of an episode are normalised together.
        discriminator: D, a network from concepts to logits of the external classes: ``mlp``, the name of another
            network of ``kshot.nn.network``, or a module.
        discriminator_hidden: units of the hidden layers of ``mlp``; by default D is one linear layer.
        discriminator_weight: lambda. With 0 there is no discriminator, and external examples are ignored.

    Raises:
        OptionError: an option is out of its range.
        MisfitError: the tasks have fewer than two external classes; or M can't learn tasks of concepts, or takes
            several outer steps on a meta-batch.
        DataError: G does not accept the inputs of the tasks, or D does not return a logit for each external class.

    Example:
        >>> from kshot.testing import sample_learner, sample_tasks
        >>> tasks = sample_tasks.classification(external=8)
        >>> learner = Concept(tasks.spec, meta=sample_learner.NearestMean, width=16)
        >>> sorted(learner.meta_gradient(tasks.sample("train", [0, 1])))
        ['discriminator_accuracy', 'discriminator_loss', 'loss', 'meta_loss']
    """

    # The class declares everything that some meta-learner needs; an instance declares what its own meta-learner needs.
    needs = Needs(kinds=("classification", "regression"), couples_tasks=True, variable_way=True, zero_shot=True)

    def __init__(
        self,
        spec: TaskSpec,
        *,
        meta: LearnerFactory,
        generator: EncoderChoice = "auto",
        width: Annotated[int, Range(1, 65536)] = 64,
        normalisation: Literal["inductive", "support"] = "inductive",
        discriminator: NetworkChoice = "mlp",
        discriminator_hidden: tuple[Annotated[int, Range(1, 65536)], ...] = (),
        discriminator_weight: Annotated[float, Range(0)] = 1.0,
    ) -> None:
        super().__init__()
        check_values(Concept, locals())
        if discriminator_weight and len(spec.external_classes) < 2:
            raise MisfitError(
                f"concept: got tasks with {len(spec.external_classes)} external classes, expected at least 2 to tell "
                "apart; use tasks with an external set (the view with-external), or discriminator_weight=0"
            )
        # An identity keeps the shape of the inputs, so that M is what it is without G.
        network = nn.Identity() if generator == "identity" else generator
        self.generator = build_encoder(network, spec.input_shape, normalisation, width)
        shape = infer_output_shape(self.generator, spec.input_shape)
        concepts = concept_spec(spec, shape, same=generator == "identity")
        self.meta: Any = meta(concepts)
        check_meta(self.meta, concepts)
        self.weight = discriminator_weight
        self.discriminator: Discriminator | None = None
        if self.weight:
            self.discriminator = Discriminator(spec.external_classes, shape, discriminator, discriminator_hidden)
        self.needs = attrs.evolve(self.meta.needs, external=self.discriminator is not None)
        # One optimizer trains all three; SGD with Reptile's rate of 1 would be far too fast for G and D.
        defaults: Training = getattr(self.meta, "training_defaults", Training())
        self.training_defaults = (
            defaults if defaults.optimizer == "adam" else attrs.evolve(defaults, optimizer="adam", lr=1e-3)
        )

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the gradient of L_T + lambda L_(x,y) with respect to theta_G, theta_M and theta_D to ``.grad``.

        Returns:
            ``loss`` is the joint loss and ``meta_loss`` is L_T; further metrics of M; and the loss and accuracy of the
            discriminator.

        Raises:
            MisfitError: M computes no gradient with respect to its inputs, so G can't learn from the tasks.
        """
        external = episodes.external if self.discriminator is not None else None
        # 1. The concepts G(x) of support, queries and external examples, all examples of an episode together.
        inputs = [episodes.support.x, episodes.query.x]
        inputs += [x for x in (episodes.support.unlabelled,) if x is not None]
        inputs += [x.x for x in (external,) if x is not None]
        z = full_precision(self.generator(torch.cat(inputs, 1)))
        concepts = list(z.split([x.shape[1] for x in inputs], 1))
        z_external = concepts.pop() if external is not None else None
        # 2. L_T: M computes its meta-gradient on the concepts. They are leaves, so that its gradients end there.
        leaves = [part.detach().requires_grad_(part.requires_grad) for part in concepts]
        metrics: dict[str, Tensor | float] = dict(self.meta.meta_gradient(on_concepts(episodes, *leaves)))
        if leaves[1].requires_grad and leaves[1].grad is None:
            raise MisfitError(
                f"concept: got a meta-learner {type(self.meta).__name__} that computes no gradient with respect to the "
                "inputs of the queries, expected one, as the generator learns from it; choose another meta-learner, "
                "such as maml, metasgd or reptile, or the generator 'identity'"
            )
        outputs = [part for part, leaf in zip(concepts, leaves, strict=True) if leaf.grad is not None]
        gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
        loss = metrics.pop("loss", 0.0)
        found: dict[str, Tensor | float] = {"loss": loss, "meta_loss": loss, **metrics}
        # 3. lambda L_(x,y): the cross-entropy of D on the external examples of all episodes.
        if external is not None and z_external is not None and self.discriminator is not None:
            logits = full_precision(self.discriminator(z_external))
            error = F.cross_entropy(logits.flatten(0, 1), external.y.flatten())
            outputs.append(self.weight * error)
            gradients.append(torch.ones_like(error))
            accuracy = (logits.argmax(-1) == external.y).float().mean()
            found |= {"loss": loss + self.weight * error.detach()}
            found |= {"discriminator_loss": error.detach(), "discriminator_accuracy": accuracy}
        # 4. Both gradients pass through G together.
        if outputs:
            torch.autograd.backward(outputs, gradients)
        return found

    def adapt(self, support: Support) -> Predictor:
        """Adapt M to the concepts of the support, and return its predictor of the concepts of queries.

        It maps queries [B, n, *input] to logits [B, n, N] or values [B, n, *target].
        """
        embed = self.generator.given(support.x)

        def concepts(x: Tensor | None) -> Tensor | None:
            return None if x is None else full_precision(embed(x)[1])

        with torch.no_grad():
            known = full_precision(embed(support.x[:, :1])[0])
            unlabelled, queries = concepts(support.unlabelled), concepts(support.query_x)
        predict = self.meta.adapt(attrs.evolve(support, x=known, unlabelled=unlabelled, query_x=queries))
        return lambda x: predict(full_precision(embed(x)[1]))

    def embed(self, x: Tensor) -> Tensor:
        """Return the concepts of inputs [B, n, *input] as vectors [B, n, D] (ability ``Embeds``)."""
        z: Tensor = self.generator(x)
        return z.flatten(2)

    def inherited(self, theirs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the tensors of another run, with D's rows in the order of these classes (ability ``Inherits``)."""
        if self.discriminator is None:
            return theirs
        return self.discriminator.inherited(theirs, "discriminator.")
