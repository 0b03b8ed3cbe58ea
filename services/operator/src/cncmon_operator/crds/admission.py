"""The ValidatingAdmissionPolicy (admissionregistration.k8s.io/v1): what the definitions' own rules can't look into.

The keys of an enumeration have no bound that a schema can state, so a rule on them there would be refused as too dear.
A policy is charged for what an object really costs.
"""

from typing import Any, Final

from cncmon_core.machine_rules import WHOLE_NUMBER
from cncmon_core.sample import STATES
from cncmon_operator.crds.definitions import GROUP, VERSION
from cncmon_operator.crds.rules import words

NAME: Final = f"enumerations.{GROUP}"

_WITH_WORDS: Final = "object.spec.?signals.orValue([]).filter(signal, has(signal.enumeration))"
_NO_NUMBER: Final = f"!raw.matches('^{WHOLE_NUMBER}$')"
_NO_STATE: Final = f"!(signal.enumeration[raw] in {words(frozenset(STATES))})"


def policy() -> list[dict[str, Any]]:
    """Return the policy and its binding."""
    return [
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": NAME},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {
                    "resourceRules": [
                        {
                            "apiGroups": [GROUP],
                            "apiVersions": [VERSION],
                            "operations": ["CREATE", "UPDATE"],
                            "resources": ["machines", "machineprofiles"],
                        }
                    ]
                },
                "variables": [{"name": "signals", "expression": _WITH_WORDS}],
                "validations": [
                    _validation(
                        f"signal.enumeration.exists(raw, {_NO_NUMBER})",
                        f"signal.enumeration.filter(raw, {_NO_NUMBER})[0]",
                        "key",
                        "must be a whole number",
                    ),
                    _validation(
                        f"signal.name == 'machine_state' && signal.enumeration.exists(raw, {_NO_STATE})",
                        f"signal.enumeration[signal.enumeration.filter(raw, {_NO_STATE})[0]]",
                        "word of machine_state",
                        f"is no machine state; known are {', '.join(sorted(STATES))}",
                    ),
                ],
            },
        },
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": NAME},
            "spec": {"policyName": NAME, "validationActions": ["Deny"]},
        },
    ]


def _validation(bad: str, culprit: str, what: str, said: str) -> dict[str, str]:
    """bad: whether a signal breaks the rule; culprit: what of it does; both in CEL, with `signal` for the signal.

    what: what the culprit is, where its value can't be told.
    """
    first = f"variables.signals.filter(signal, {bad})"
    # One signal is named: a message has 5 KiB at most.
    texts = f"{first}.map(signal, 'signal ' + signal.name + ': enumeration: ' + {culprit} + ' {said}')"
    return {
        "expression": f"!variables.signals.exists(signal, {bad})",
        "message": f"enumeration: a {what} {said}",
        "messageExpression": f"{texts}[0]",
    }
