"""The hook keeps the rules for hooks: it changes nothing in the run that it observes."""

import kshot.testing

plots = kshot.testing.suite(hook="plots")
