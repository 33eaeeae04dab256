"""From a lab to a real deployment: a project that makes the same round possible, with keys that nobody shares."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from he_protocol.config import TaskConfig

PROJECT_FILE, PLAN_FILE, MODEL_FILE, STEPS_FILE = "project.toml", "plan.toml", "initial.safetensors", "STEPS.md"
SERVER = "aggregator"
OPENINGS = 100
"""A lab's are as good as endless; an epoch's are a promise."""


def write_project(folder: Path, config: TaskConfig, clients: Sequence[str], url: str, model: Path) -> None:
    """Project file, plan, initial model and the steps that remain. `config` is the lab's task."""
    holders = [holder.name for holder in config.committee.holders]
    (folder / PROJECT_FILE).write_text(_project(config, holders, clients, url))
    (folder / PLAN_FILE).write_text(_plan(config))
    (folder / STEPS_FILE).write_text(_steps(config, holders, clients, url))
    shutil.copy(model, folder / MODEL_FILE)


def _project(config: TaskConfig, holders: Sequence[str], clients: Sequence[str], url: str) -> str:
    return f"""\
# Who takes part. Give everybody the name that it should have.
task = "{config.name}"
url = {json.dumps(url)}
server = "{SERVER}"
holders = {_list(holders)}
clients = {_list(clients)}
# tls_ca = "ca.pem"           # where a CA of your own vouches for the server's certificate
"""


def _plan(config: TaskConfig) -> str:
    encryption, rounds, aggregation, committee = config.encryption, config.rounds, config.aggregation, config.committee
    weighting = (
        f'weighting = "{aggregation.weighting}"\nweight_cap = {aggregation.weight_cap!r}\n'
        if aggregation.load_weighting().uses_cap
        else ""
    )
    return f"""\
name = "{config.name}"
epoch = 1

[encryption]
scheme = "{encryption.scheme}"
profile = "{encryption.profile}"

[privacy]
unit = "none"                 # sums are opened as they are: 'he-server plan' helps to choose "client" or "record"

[rounds]
min_clients = {rounds.min_clients}
max_clients = {rounds.max_clients}
collect_seconds = {rounds.collect_seconds}
opening_seconds = {rounds.opening_seconds}
staleness = {rounds.staleness}
max_openings = {OPENINGS}

[aggregation]
value_range = {aggregation.value_range!r}
{weighting}
[committee]
threshold = {committee.threshold}
agreement = {committee.agreement}
"""


def _steps(config: TaskConfig, holders: Sequence[str], clients: Sequence[str], url: str) -> str:
    holder, client = holders[0], clients[0]
    credentials = " ".join(f"--holder {name}/credential.jws" for name in holders)
    return f"""\
# From the lab to a real deployment

The lab's keys stay in the lab. Here everybody makes a key of its own, on its own machine; the folders stand side by
side only as in a rehearsal. First set names and the server's URL in {PROJECT_FILE}, and the promise in {PLAN_FILE}:
a lab's sums are opened without differential privacy.

The authority, offline, makes a kit for each party, and hands it to that party only:

```
he-authority init
he-authority provision {PROJECT_FILE} --out kits
```

Each party unpacks its kit, which makes its key and a request, and sends `enroll-request.jws` back:

```
he-server init kits/{SERVER}.kit --data-dir server
he-holder init kits/{holder}.kit --data-dir {holder}        # every key holder
he-client init kits/{client}.kit --data-dir {client}        # every client
```

The authority enrolls them, and signs the task:

```
he-authority enroll server/enroll-request.jws --role server --invited --out server/credential.jws
he-authority enroll {holder}/enroll-request.jws --role holder --invited \\
    --out {holder}/credential.jws        # every key holder
he-authority enroll {client}/enroll-request.jws --role client --invited \\
    --out {client}/credential.jws        # every client
he-authority task sign {PLAN_FILE} --model {MODEL_FILE} --server server/credential.jws {credentials} --out task.jws
```

The server, with a certificate for its name:

```
he-server task add task.jws --model {MODEL_FILE} --data-dir server
he-server serve --data-dir server --tls-cert cert.pem --tls-key key.pem        # runs until it is stopped
```

Key holders, then clients:

```
he-holder join {config.name} --server {shlex.quote(url)} --data-dir {holder}        # every key holder
he-holder run --data-dir {holder}        # every key holder; runs until it is stopped
he-client train my.py:fit --data-dir {client}        # every client
```
"""


def _list(names: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"
