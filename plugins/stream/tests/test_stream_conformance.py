"""Streams of vectors, of images, and with strings as labels keep every rule for tasks."""

from kshot.testing import sample_tasks, suite
from kshot_stream import Stream


def of_vectors(seed: int = 0) -> Stream:
    return Stream(sample_tasks.classification(), way=3, instances=4, seed=seed)


def of_pictures(seed: int = 0) -> Stream:
    return Stream(sample_tasks.classification(input_shape=(1, 4, 4)), way=4, instances=2, seed=seed)


def with_strings(seed: int = 0) -> Stream:
    return Stream(sample_tasks.classification(), way=3, instances=4, seed=seed, labels="strings")


strings = suite(tasks=with_strings)
vectors = suite(tasks=of_vectors)
pictures = suite(tasks=of_pictures)
by_name = suite(tasks="stream", options={"of": sample_tasks.classification(), "way": 2, "instances": 3})
