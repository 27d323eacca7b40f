"""Proto-MAML: MAML whose head starts from the prototypes of the support (Triantafillou et al. 2019)."""

from kshot_protomaml.protomaml import ProtoMAML, prototypical_head

__all__ = ["ProtoMAML", "prototypical_head"]
