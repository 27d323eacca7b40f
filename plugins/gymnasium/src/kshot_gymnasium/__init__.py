"""Control tasks from vectorised gymnasium environments with a task parameter."""

from kshot_gymnasium.adapter import Environment, GymnasiumTasks
from kshot_gymnasium.cartpole import CartPole
from kshot_gymnasium.families import Family, OneOf, Uniform
from kshot_gymnasium.half_cheetah import HalfCheetah
from kshot_gymnasium.pendulum import Pendulum
from kshot_gymnasium.registered import Registered

__all__ = [
    "CartPole",
    "Environment",
    "Family",
    "GymnasiumTasks",
    "HalfCheetah",
    "OneOf",
    "Pendulum",
    "Registered",
    "Uniform",
]
