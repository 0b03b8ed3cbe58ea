"""Enforces NetworkPolicies on the node, as a network plugin does: `policies.py KUBECTL`, in the node's namespaces.

Once a second it reads namespaces, pods and policies, and writes the table `ip policies` of nftables anew where they
have changed. Frames between pods cross the bridge and are seen all the same (net.bridge.bridge-nf-call-iptables); what
the node itself sends, such as probes, is not filtered, as Kubernetes demands. Addresses of Services have become those
of pods before the hook. Rules as in the API's reference: networking.k8s.io/v1, NetworkPolicySpec.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """A pod with an address. ports: those that have names, as (name, protocol)."""

    namespace: str
    labels: dict[str, str]
    address: str
    ports: dict[tuple[str, str], int]


@dataclass(frozen=True)
class Direction:
    """One of the two types of policies, and what it is called in a policy and in nftables."""

    type: str
    rules: str
    peers: str
    peer_field: str
    own_field: str


INGRESS = Direction("Ingress", "ingress", "from", "saddr", "daddr")
EGRESS = Direction("Egress", "egress", "to", "daddr", "saddr")


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a LabelSelector takes these labels; {} takes all."""
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for expression in selector.get("matchExpressions") or []:
        value, values = labels.get(expression["key"]), expression.get("values", [])
        holds = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not holds[expression["operator"]]:
            return False
    return True


class Ruleset:
    """What a list of namespaces, pods and policies allows."""

    def __init__(self, items: list[Object]) -> None:
        self._namespaces = {
            one["metadata"]["name"]: one["metadata"].get("labels", {}) for one in items if one["kind"] == "Namespace"
        }
        self._pods = [_pod(one) for one in items if one["kind"] == "Pod" and _has_address(one)]
        self._policies = [one for one in items if one["kind"] == "NetworkPolicy"]

    def text(self) -> str:
        """Return it for `nft -f`: the old table goes and the new one comes in one transaction."""
        chains, jumps = [], []
        for direction in (EGRESS, INGRESS):
            chosen = []
            for number, pod in enumerate(self._pods):
                policies = [one for one in self._policies if _applies(one, pod, direction)]
                if policies:
                    allowed = [f"    {rule}return" for one in policies for rule in self._allowed(one, pod, direction)]
                    name = f"{direction.rules}{number}"
                    chains.append("\n".join([f"  chain {name} {{", *allowed, "    counter drop", "  }"]))
                    chosen.append(f"{pod.address} : jump {name}")
            if chosen:
                jumps.append(f"    ip {direction.own_field} vmap {{ {', '.join(chosen)} }}")
        hook = [
            "    type filter hook forward priority filter; policy accept;",
            "    ct state established,related accept",
        ]
        forward = "\n".join(["  chain forward {", *hook, *jumps, "  }"])
        return "\n".join(
            ["table ip policies", "delete table ip policies", "table ip policies {", *chains, forward, "}\n"]
        )

    def _allowed(self, policy: Object, pod: Pod, direction: Direction) -> Iterator[str]:
        for rule in policy["spec"].get(direction.rules) or []:
            for address, behind in self._peers(rule, policy["metadata"]["namespace"], direction):
                for port in rule.get("ports") or [{}]:
                    receivers = [pod] if direction is INGRESS else behind
                    yield from _port(address, port, receivers if receivers is not None else self._pods, direction)

    def _peers(self, rule: Object, namespace: str, direction: Direction) -> Iterator[tuple[str, list[Pod] | None]]:
        """Yield conditions on the other side's address, and the pods that it stands for."""
        if not rule.get(direction.peers):
            yield "", None
        for peer in rule.get(direction.peers) or []:
            if block := peer.get("ipBlock"):
                outside = "".join(f"ip {direction.peer_field} != {cidr} " for cidr in block.get("except") or [])
                yield f"ip {direction.peer_field} {block['cidr']} {outside}", None
                continue
            names = {namespace}
            if "namespaceSelector" in peer:
                names = {
                    name for name, labels in self._namespaces.items() if selects(peer["namespaceSelector"], labels)
                }
            pods = [
                one
                for one in self._pods
                if one.namespace in names and selects(peer.get("podSelector") or {}, one.labels)
            ]
            if pods:
                yield f"ip {direction.peer_field} {{ {', '.join(sorted(one.address for one in pods))} }} ", pods


def _port(address: str, port: Object, receivers: list[Pod], direction: Direction) -> Iterator[str]:
    protocol, number = port.get("protocol", "TCP").lower(), port.get("port")
    if not port:
        yield address
    elif number is None:
        yield f"{address}meta l4proto {protocol} "
    elif isinstance(number, int):
        end = f"-{port['endPort']}" if port.get("endPort") else ""
        yield f"{address}{protocol} dport {number}{end} "
    else:
        for one in receivers:
            if (number_there := one.ports.get((number, protocol))) is not None:
                own = f"ip daddr {one.address} " if direction is EGRESS else address
                yield f"{own}{protocol} dport {number_there} "


def _has_address(pod: Object) -> bool:
    status = pod.get("status", {})
    lives = status.get("phase") in ("Pending", "Running")
    return lives and bool(status.get("podIP")) and not pod["spec"].get("hostNetwork")


def _pod(pod: Object) -> Pod:
    ports = {
        (port["name"], port.get("protocol", "TCP").lower()): port["containerPort"]
        for container in pod["spec"]["containers"]
        for port in container.get("ports", [])
        if "name" in port
    }
    metadata = pod["metadata"]
    return Pod(metadata["namespace"], metadata.get("labels", {}), pod["status"]["podIP"], ports)


def _applies(policy: Object, pod: Pod, direction: Direction) -> bool:
    spec = policy["spec"]
    types = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
    here = policy["metadata"]["namespace"] == pod.namespace and direction.type in types
    return here and selects(spec.get("podSelector") or {}, pod.labels)


def main(kubectl: str) -> None:
    """Enforce until the process is killed."""
    applied = None
    while True:
        command = [kubectl, "get", "namespaces,pods,networkpolicies", "--all-namespaces", "-o", "json"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode == 0:
            text = Ruleset(json.loads(found.stdout)["items"]).text()
            if text != applied:
                done = subprocess.run(["nft", "-f", "-"], input=text, text=True, capture_output=True, check=False)
                applied = text if done.returncode == 0 else None
                print("applied" if applied else f"{done.stderr}\n{text}", flush=True)
        time.sleep(1)


if __name__ == "__main__":
    main(sys.argv[1])
