"""Make tasks of the AT&T (ORL) database of faces: 40 people with 10 pictures each, split by person."""

from kshot_orl_faces.tasks import orl_faces

__all__ = ["orl_faces"]
