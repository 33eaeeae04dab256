"""`HushSumClient`: everything that a device does with a server."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from he_client.attempt import Train, attempt
from he_client.context import LocalResult, TrainingContext
from he_client.floors import Floors, check_floors
from he_client.published import Model, checked_version, opened_sum, pull_model
from he_client.quantise import UpdateQuantiser
from he_client.resend import make_fit
from he_client.revocations import REVOCATIONS_FILE, RevocationFile
from he_client.schemes import Encryptor, Source, make_encryptor
from he_client.sending import WaitInterruptedError, send
from he_client.spending import Spending
from he_client.spool import EncryptedUpdate, Spool, SpooledUpdate
from he_client.submission import Submission
from he_client.tensors import Tensors, flatten
from he_client.waiting import decided
from he_party.board import ServerBoard
from he_party.http_transport import HttpTransport, RetryPolicy
from he_party.identity import Identity
from he_party.tasks import MEMORY_FILE, TaskMemory
from he_party.threads import abandonable
from he_protocol import documents, frames, limits
from he_protocol import paths as api_paths
from he_protocol.errors import ProblemError, Unavailable
from he_protocol.identity.credentials import valid_until
from he_protocol.identity.jws import token_hash, verify
from he_protocol.identity.revocation import check_fresh, check_key
from he_protocol.messages import Receipt, SectionEntry, SignedUpdate, UpdateHeader, from_json
from he_protocol.privacy.accountant import Spent
from he_protocol.privacy.plan import epsilon
from he_protocol.privacy.quantise import Integers
from he_protocol.problems import (
    NOT_FOUND,
    UNEXPECTED_ANSWER,
    UNREACHABLE,
)
from he_protocol.task import Task

log = logging.getLogger("he-client")

SPENDING_FILE = "privacy-spent.jsonl"
RESUMABLE_ABOVE = 8 << 20


class HushSumClient:
    """One client of one server.

    >>> async with HushSumClient(url, Identity.load(path), state_dir=path) as client:  # doctest: +SKIP
    ...     task = await client.task("keyboard")
    ...     model = await client.pull_model(task)
    ...     sent = await client.submit(task, train(model.tensors), base_version=model.version)
    ...     version = await client.wait(task, sent)
    """

    def __init__(
        self,
        url: str,
        identity: Identity,
        *,
        state_dir: Path,
        floors: Floors | None = None,
        tls: ssl.SSLContext | None = None,
        retry: RetryPolicy | None = None,
        clock: Callable[[], float] = time.time,
        resumable_above: int = RESUMABLE_ABOVE,
    ) -> None:
        """Updates of more than `resumable_above` bytes are uploaded in pieces: a lost connection costs little.

        floors: the least that a task must promise before anything is encrypted for it; the default is `Floors()`.
        """
        self._state = Path(state_dir)
        self._floors = floors or Floors()
        self._transport = HttpTransport(url, identity, tls=tls, retry=retry, clock=clock)
        self._spending = Spending(self._state / SPENDING_FILE, self._floors.epsilon)
        self._encryptors: dict[str, Encryptor] = {}
        self._clock = clock
        self._resumable_above = resumable_above

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._transport.__aexit__(kind, error, tb)

    @property
    def name(self) -> str:
        """This client's name, as its credential has it."""
        return self._transport.identity.name

    @property
    def credential_until(self) -> str:
        """When this client's credential ends, as in 2026-11-28T10:00:00Z: before that its authority gives a new one."""
        return valid_until(self._transport.identity.credential)

    async def task(self, name: str) -> Task:
        """The task of this hash, or the newest epoch of this name, as the authority signed it.

        Of a name this device never takes an older epoch than the newest that it has seen, nor another task of the same
        epoch: `old-epoch`, `ambiguous-task`. Raises `below-floor` for a task that promises less than our floors,
        `revoked-key` when the key of the task's server, or our own, is on the newest revocation list that this
        device has seen, and `old-revocations` when that one has expired and the server has no newer.
        """
        memory = TaskMemory(self._state / MEMORY_FILE, self._transport.identity.authority)
        task = await self._transport.task(name, memory)
        await asyncio.to_thread(check_floors, task, self._floors)
        known = await RevocationFile(self._state / REVOCATIONS_FILE).refresh(self._transport)
        check_fresh(known, self._clock())
        check_key(known, task.config.server.name, task.config.server.key)
        check_key(known, self._transport.identity.name, self._transport.identity.key.public)
        return task

    async def pull_model(self, task: Task) -> Model:
        """The newest published model; not downloaded again when it has not changed. See `he_client.published`."""
        return await pull_model(self._transport, task, self._state)

    async def submit(
        self,
        task: Task,
        update: Tensors,
        *,
        base_version: int,
        examples: float | None = None,
        metrics: Mapping[str, Any] = MappingProxyType({}),
        within: float = 0.0,
    ) -> Submission:
        """Clip, quantise, add noise, encrypt, store, upload.

        update: tensors of the task's names and shapes, of any library: the change of the model (or, at record
        level, the sum of clipped gradients times -1). `metrics`: numbers by name, of which those that the task asks for
        join its sums. `within` is as in `upload`. Under a DP plan values that cannot be used become zero (see
        `he_client.quantise.UpdateQuantiser`). Raises the refusal that names what is wrong: then nothing is left that
        could be sent later. Only when the service fails, so that nobody knows whether the update arrived, the encrypted
        update stays in the state directory, and `resume` sends the same bytes again.
        """
        started = time.perf_counter()
        quantiser = UpdateQuantiser(task, flatten(task, update), examples, metrics=metrics)
        encrypted = await self.encrypt(task, quantiser.block, base_version=base_version)
        between = time.perf_counter()
        sent = await self._upload(task, encrypted, within, keep=False)
        return replace(sent, seconds={"encrypt": between - started} | sent.seconds, limited=quantiser.limited)

    async def submit_from(
        self, task: Task, train: Train, model: Model, *, within: float = 0.0, raise_errors: bool = False
    ) -> Submission:
        """Train on a pulled model, in another thread, and `submit` the result.

        A run of one round: `train` may ask for its context, whose state begins empty. Metrics that it returns are shown
        by `he_client.rounds.train_rounds`. Under a DP plan a `train` that raises sends a zero update (see
        `he_client.attempt`), unless `raise_errors`.
        """
        context = TrainingContext(task, model.version, 1, self.name)
        result = await abandonable(partial(attempt, train, context, model.tensors, raise_errors=raise_errors))
        return await self.submit_result(task, result, model, within=within)

    async def submit_result(self, task: Task, result: LocalResult, model: Model, *, within: float = 0.0) -> Submission:
        """`submit` what a training function has made of a pulled model."""
        return await self.submit(
            task,
            result.tensors,
            base_version=model.version,
            examples=result.examples,
            metrics=result.metrics,
            within=within,
        )

    async def encrypt(self, task: Task, source: Source, *, base_version: int) -> EncryptedUpdate:
        """Encrypt the task.length integers of `source` (see `he_client.quantise.UpdateQuantiser`) and store them
        durably.

        Raises `bad-settings` for what is no version, `below-floor`, or `budget-exhausted` when with it our updates to
        the job could cost more than the task promises.
        """
        version = checked_version(base_version)
        await asyncio.to_thread(check_floors, task, self._floors)
        self._spending.check_next(task, [waiting.update_id for waiting in self._spool(task).pending()])
        encryptor = await self._encryptor(task)
        with self._spool(task).encrypting() as spool:
            return await self._encrypt(task, encryptor, spool, source, version)

    async def _encrypt(
        self, task: Task, encryptor: Encryptor, spool: Spool, source: Source, base_version: int
    ) -> EncryptedUpdate:
        update_id = secrets.token_bytes(16)
        encrypted = spool.begin(update_id.hex())
        digests = {section.name: hashlib.sha256() for section in task.body}
        files = await asyncio.to_thread(encrypted.open_sections)

        def write(name: str, data: bytes | memoryview) -> None:
            digests[name].update(data)
            files[name].write(data)

        try:
            await encryptor.encrypt(update_id, source, write)
        except BaseException:
            spool.discard(encrypted)
            raise
        finally:
            for file in files.values():
                file.close()
        identity = self._transport.identity
        header = UpdateHeader(
            task_hash=task.hash,
            epoch=task.config.epoch,
            update_id=update_id,
            client=identity.name,
            base_version=base_version,
            created=int(self._clock()),
            sections=tuple(
                SectionEntry(section.name, section.size, digests[section.name].digest()) for section in task.body
            ),
        )
        spool.commit(encrypted, SignedUpdate(identity.key.sign(header), identity.credential))
        return encrypted

    async def upload(self, task: Task, encrypted: EncryptedUpdate, *, within: float = 0.0) -> Submission:
        """Upload an encrypted update, byte for byte the same however often, and keep the receipt.

        From here on it counts as opened, whatever the server says (`privacy_spent`).
        When this client has another update in the open round, the next round is waited for, up to
        `within` seconds; then `already-in-round` is raised. The update is kept, as after every
        refusal but those of which `retry` is `never`.
        """
        return await self._upload(task, encrypted, within, keep=True)

    async def _upload(self, task: Task, encrypted: EncryptedUpdate, within: float, *, keep: bool) -> Submission:
        """keep: also what the server may take later. Where nobody knows whether it arrived, it is always kept."""
        started = time.perf_counter()
        spool = self._spool(task)
        head = encrypted.head
        await asyncio.to_thread(self._spending.count, task, encrypted.update_id)
        try:
            receipt = await send(self._transport, task, encrypted, within=within, in_pieces_above=self._resumable_above)
        except WaitInterruptedError as interrupted:
            if not keep:
                spool.note(encrypted, interrupted.refusal, self._clock(), dropped=True)
            raise
        except ProblemError as refusal:
            if refusal.problem.drops or not (keep or isinstance(refusal, Unavailable)):
                spool.note(encrypted, refusal, self._clock(), dropped=True)
            raise
        signed = verify(receipt.receipt, Receipt, task.config.server.key)
        if (signed.update_id.hex(), signed.header) != (encrypted.update_id, token_hash(spool.header(encrypted).header)):
            raise ProblemError(UNEXPECTED_ANSWER, "the receipt is for another update", expected=encrypted.update_id)
        size = encrypted.size + len(frames.start(head))
        spool.finish(encrypted, receipt.receipt)
        return Submission(task.id, encrypted.update_id, receipt.round, size, {"upload": time.perf_counter() - started})

    async def resume(self, task: Task) -> list[Submission]:
        """Send what an earlier run encrypted but got no receipt for.

        No update stops the others, or this device. What can never pass (a model that is too old by now, a head that a
        crash cut off) is dropped with a warning; whatever else is refused waits for the next call, until it is too old.
        `updates` tells why. While the server cannot be reached, or refuses this device, all wait.
        """
        sent, spool = [], self._spool(task)
        pending = await asyncio.to_thread(spool.pending)
        if pending and not await self._welcome(task, spool, pending):
            return []
        for encrypted in pending:
            if not await asyncio.to_thread(self._made_fit, task, spool, encrypted):
                continue
            try:
                sent.append(await self.upload(task, encrypted))
            except ProblemError as refusal:
                if refusal.problem.drops:
                    log.warning("update %s is dropped: %s", encrypted.update_id, refusal)
                    continue
                log.info("update %s waits: %s", encrypted.update_id, refusal)
                spool.note(encrypted, refusal, self._clock(), dropped=False)
                if refusal.problem == UNREACHABLE:  # the next one would wait as long; it comes first the next time
                    break
        return sent

    async def _welcome(self, task: Task, spool: Spool, pending: list[EncryptedUpdate]) -> bool:
        """Whether the server takes a signed request; what waits is told why not.

        By a clock that is a year ahead every update is too old, and one that is behind makes its head too old for the
        day when it is right again. So nothing is judged or signed by our clock before the server has agreed with it.
        """
        try:
            await self.rounds(task)
        except ProblemError as refusal:
            log.info("%d updates wait: %s", len(pending), refusal)
            for encrypted in pending:
                spool.note(encrypted, refusal, self._clock(), dropped=False)
            return False
        return True

    def updates(self, task: Task) -> list[SpooledUpdate]:
        """This device's updates to a task: those that wait, those that were acknowledged, and the newest of those that
        were dropped."""
        return self._spool(task).listed()

    def drop(self, task: Task, update_id: str) -> None:
        """Forget an update that waits. Raises `not-found`."""
        found = self._spool(task).find(update_id)
        if found is None:
            raise ProblemError(NOT_FOUND, "no update of this id waits", got=update_id)
        self._spool(task).discard(found)

    async def wait(self, task: Task, sent: Submission | str, *, within: float = 3600.0) -> int:
        """The model version that an acknowledged update, or the one of this id, went into.

        Raises why it is in no sum (`stale-update`, `revoked-key`, `too-few-clients`, `combine-refused`, ...), or
        `unreachable` when nothing was decided within that many seconds: rounds wait for their key holders.
        """
        return await decided(self._transport, task, sent if isinstance(sent, str) else sent.update_id, within)

    async def round(self, task: Task, number: int) -> documents.RoundStatus:
        """One round's state and timings."""
        path = api_paths.round_path(task.id, number)
        limit = limits.round_status(task)
        return await self._transport.document(
            "GET", path, documents.RoundStatus, audience=task.config.server.name, limit=limit
        )

    async def rounds(self, task: Task) -> list[documents.RoundStatus]:
        """The newest rounds, newest first, each with what its key holders have said."""
        path = api_paths.rounds_path(task.id)
        server, limit = (
            task.config.server.name,
            min(documents.RECENT_ROUNDS * limits.round_status(task), limits.ROUND_LIST),
        )
        return await self._transport.document("GET", path, list[documents.RoundStatus], audience=server, limit=limit)

    async def changes(self, task: Task) -> AsyncIterator[documents.RoundStatus]:
        """The newest round first, then a round whenever its state has changed: `he_party.events.RoundEvents`.

        Ends when the server does. Raises `too-many-streams`, or `unreachable` when the connection breaks; whoever
        listens again is told the present state first.
        """
        path, limit = api_paths.events_path(task.id), limits.round_status(task)
        events = self._transport.events(path, audience=task.config.server.name, limit=limit)
        async for data in events:
            yield from_json(data, documents.RoundStatus, limit=limit)

    async def opened_sum(self, task: Task, number: int) -> Integers:
        """The integer sum that the committee opened for a published round, shape (task.length,)."""
        return await opened_sum(self._transport, task, number, self._state)

    def privacy_spent(self, task: Task) -> float:
        """Epsilon (at the plan's delta) that this client's updates to the job can have cost so far, all epochs of it.

        An update counts from before its first sending, also when the server refused it or never answered.
        """
        return self.privacy_account(task).epsilon

    def privacy_account(self, task: Task) -> Spent:
        """`privacy_spent`, and the accountant's method behind it."""
        return self._spending.account(task)

    def privacy_planned(self, task: Task) -> float:
        """Epsilon if the task uses its whole budget of openings: known before training starts."""
        return epsilon(task.config.privacy, task.config.rounds.max_openings)

    def _made_fit(self, task: Task, spool: Spool, encrypted: EncryptedUpdate) -> bool:
        """See `he_client.resend.make_fit`; what can never pass is dropped."""
        try:
            make_fit(task, spool, encrypted, self._transport.identity, self._clock())
        except ProblemError as refusal:
            log.warning("update %s is dropped: %s", encrypted.update_id, refusal)
            spool.note(encrypted, refusal, self._clock(), dropped=True)
            return False
        return True

    def _spool(self, task: Task) -> Spool:
        return Spool(self._state / "updates", task.id, tuple(section.name for section in task.body))

    async def _encryptor(self, task: Task) -> Encryptor:
        if task.id not in self._encryptors:
            board, name = ServerBoard(self._transport, task), self._transport.identity.name
            self._encryptors[task.id] = await make_encryptor(task, name, board, self._state / "keys")
        return self._encryptors[task.id]
