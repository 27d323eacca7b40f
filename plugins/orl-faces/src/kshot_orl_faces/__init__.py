"""The AT&T (ORL) database of faces: 40 people, 10 pictures each, split by person."""

from kshot_orl_faces.tasks import orl_faces

__all__ = ["orl_faces"]
