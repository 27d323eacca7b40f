from kshot.errors import Unavailable

raise Unavailable("no such device in this machine")
