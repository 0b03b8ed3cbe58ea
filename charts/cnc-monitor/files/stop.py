"""Scale a Deployment to nothing and wait until its pods are gone, with the rights of this pod's service account."""

import json
import os
import ssl
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

ACCOUNT = Path(os.environ.get("ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
API = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
NAMESPACE, DEPLOYMENT, SELECTOR = os.environ["NAMESPACE"], os.environ["DEPLOYMENT"], os.environ["SELECTOR"]
WAIT_S = 60.0


def ask(path: str, patch: object = None) -> Any:
    """Return the API server's answer; patch: a merge patch."""
    request = urllib.request.Request(  # noqa: S310 the scheme is ours
        API + path,
        data=None if patch is None else json.dumps(patch).encode(),
        method="GET" if patch is None else "PATCH",
        headers={
            "Authorization": f"Bearer {(ACCOUNT / 'token').read_text().strip()}",
            "Content-Type": "application/merge-patch+json",
        },
    )
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    with urllib.request.urlopen(request, timeout=10, context=context) as answer:  # noqa: S310
        return json.load(answer)


ask(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{DEPLOYMENT}/scale", {"spec": {"replicas": 0}})
end_s = time.monotonic() + WAIT_S
while ask(f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector={urllib.parse.quote(SELECTOR)}")["items"]:
    if time.monotonic() > end_s:
        sys.exit(f"pods of {DEPLOYMENT} are still there after {WAIT_S:g} s")
    time.sleep(0.5)
