"""A transformer, walked through on a tape by the roles of its weights: embeddings, layers, head, loss."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from surgery.architecture import Site
from surgery.planning.cost.attention import Attention
from surgery.planning.cost.hosts import Host
from surgery.planning.cost.settings import FUNCTIONS, Settings
from surgery.planning.cost.tape import STATISTIC_BYTES, Tape, Value
from surgery.planning.cost.unknown import Unknown

__all__ = ["Batch", "Walk"]

_EMBEDDINGS = ("embedding.token", "embedding.position", "embedding.token_type")
_LAYER = frozenset(
    {
        "attention.query", "attention.key", "attention.value", "attention.output", "mlp.gate", "mlp.up", "mlp.down",
        "norm.attention.pre", "norm.attention.post", "norm.mlp.pre", "norm.mlp.post", "norm.query", "norm.key",
    }
)  # fmt: skip
_OUTSIDE = frozenset(
    {
        *_EMBEDDINGS, "embedding.projection", "norm.embedding", "norm.final", "norm.head", "head.transform", "head.lm",
        "head.classifier",
    }
)  # fmt: skip
_ID_BYTES = 8
_POOLED = ("ForSequenceClassification", "ForMultipleChoice", "ForNextSentencePrediction")


@dataclass(frozen=True, slots=True)
class Batch:
    """What a step is given: `size` examples of `length` tokens, padded ones among them or not."""

    size: int
    length: int
    padded: bool = False

    @property
    def tokens(self) -> int:
        return self.size * self.length


class Walk:
    """One forward pass on a tape.

    Args:
        tape: what counts.
        hosts: path -> host.
        settings: of the model.
        batch: the step's.
        fused: whether attention is one kernel.

    Raises:
        Unknown: a weight whose role has no place in this walk.
    """

    def __init__(self, tape: Tape, hosts: Mapping[str, Host], settings: Settings, batch: Batch, *, fused: bool) -> None:
        self._tape, self._settings, self._batch, self._fused = tape, settings, batch, fused
        self._size = settings.size
        self._outside: dict[str, list[Host]] = defaultdict(list)
        self._layers: dict[int, dict[str, Host]] = defaultdict(dict)
        stacks = set()
        for host in hosts.values():
            for site in host.weight or host.sites[:1]:
                _refuse(site, _OUTSIDE if site.layer is None else _LAYER)
                if site.layer is None:
                    self._outside[site.role].append(host)
                else:
                    stacks.add(site.stack)
                    self._layers[site.layer][site.role] = host
        if len(stacks) != 1:
            raise Unknown("encoder and decoder together are not walked" if stacks else "there are no layers")
        if settings.layers not in (None, len(self._layers)):
            raise Unknown(f"{settings.layers} layers are computed with the weights of {len(self._layers)}")
        self._is_decoder = stacks == {"decoder"}
        self._mask: Value | None = None
        if batch.padded:
            self._mask = Value(batch.size * batch.length, batch.length, settings.size, grad=False)
        self._angles: tuple[Value, Value] | None = None

    def run(self) -> None:
        """Walk from the tokens to the loss."""
        x = self._embeddings()
        for index in sorted(self._layers):
            x = self._layer(x, self._layers[index])
        self._tape.part = "norms"
        for host in self._outside["norm.final"]:
            x = self._normed(host, x)
        self._heads(x)

    def _embeddings(self) -> Value:
        self._tape.part = "embeddings"
        found = []
        for role in _EMBEDDINGS:
            for host in self._outside[role]:
                ids = Value(self._batch.tokens, 1, _ID_BYTES, grad=False)
                if role == "embedding.position":
                    ids = Value(self._batch.length, 1, _ID_BYTES, grad=False)
                looked_up = host.table(self._tape, ids, self._size)
                found.append(Value(self._batch.tokens, looked_up.width, looked_up.size, looked_up.grad))
        if not found:
            raise Unknown("no role says where the tokens' vectors are")
        x = self._tape.add(*found) if len({value.width for value in found}) == 1 else found[0]
        for host in self._outside["norm.embedding"]:
            x = self._normed(host, x)
        x = self._tape.dropout(x, self._settings.embedding_dropout)
        for host in self._outside["embedding.projection"]:
            x = host.linear(self._tape, x)
        return x

    def _layer(self, x: Value, roles: Mapping[str, Host]) -> Value:
        entry = self._norm(x, roles, "norm.attention.pre")
        attended = self._attention(entry, roles)
        attended = self._tape.dropout(attended, self._settings.residual_dropout)
        if self._settings.parallel:
            entry = self._norm(x, roles, "norm.mlp.pre") if "norm.mlp.pre" in roles else entry
            return self._tape.add(x, attended, self._mlp(entry, roles))
        if not roles.keys() & {"norm.mlp.pre", "norm.attention.post", "norm.mlp.post"}:
            return self._tape.add(x, attended, self._mlp(entry, roles))
        x = self._norm(self._tape.add(x, attended), roles, "norm.attention.post")
        fed = self._mlp(self._norm(x, roles, "norm.mlp.pre"), roles)
        fed = self._tape.dropout(fed, self._settings.residual_dropout)
        return self._norm(self._tape.add(x, fed), roles, "norm.mlp.post")

    def _normed(self, host: Host, x: Value) -> Value:
        return host.norm(self._tape, x, plain=self._settings.plain_norms)

    def _norm(self, x: Value, roles: Mapping[str, Host], role: str) -> Value:
        self._tape.part = "norms"
        return self._normed(roles[role], x) if role in roles else x

    def _attention(self, x: Value, roles: Mapping[str, Host]) -> Value:
        query, key, value = self._queries_keys_values(x, roles)
        self._tape.part = "attention"
        settings = self._settings
        width = settings.head_width or query.width // settings.heads
        query = self._by_head(query, width, roles.get("norm.query"))
        key = self._by_head(key, width, roles.get("norm.key"))
        if settings.rotary:
            query, key = self._rotated(query, width), self._rotated(key, width)
        attend = Attention(
            self._batch.size, self._batch.length, query.width // width, key.width // width, width,
            settings.attention_dropout, self._fused, self._mask,
        )  # fmt: skip
        output = attend(self._tape, query, key, value)
        self._tape.part = "linear maps"
        return _need(roles, "attention.output").linear(self._tape, output)

    def _queries_keys_values(self, x: Value, roles: Mapping[str, Host]) -> Sequence[Value]:
        """Return three values; those of one fused weight are views of one."""
        self._tape.part = "linear maps"
        made: dict[str, Value] = {}
        found = []
        for role in ("attention.query", "attention.key", "attention.value"):
            host = _need(roles, role)
            if host.path not in made:
                made[host.path] = host.linear(self._tape, x)
            whole = made[host.path]
            width = sum(site.fan_out for site in host.weight if site.role == role)
            base = whole if width < whole.width else None
            found.append(Value(whole.rows, width, whole.size, whole.grad, base) if base else whole)
        return found

    def _by_head(self, x: Value, width: int, norm: Host | None) -> Value:
        if norm is None:
            return x
        rows = self._normed(norm, Value(x.rows * x.width // width, width, x.size, x.grad, x.base or x))
        return Value(x.rows, x.width, x.size, rows.grad)

    def _rotated(self, x: Value, width: int) -> Value:
        """X * cos + turned(x) * sin: the angles are kept, and shared by all layers."""
        if self._angles is None:
            cos, sin = (Value(self._batch.length, width, self._size, grad=False) for _ in range(2))
            self._angles = cos, sin
        if x.grad:
            for angle in self._angles:
                self._tape.keep(angle)
        return x.like()

    def _mlp(self, x: Value, roles: Mapping[str, Host]) -> Value:
        self._tape.part = "linear maps"
        function = self._settings.function
        up_host, gate_host = _need(roles, "mlp.up"), roles.get("mlp.gate")
        if gate_host is None:
            up = up_host.linear(self._tape, x)
            self._tape.part = "activation functions"
            inner = self._tape.activation(up, function.inputs, function.outputs)
        else:
            gate = gate_host.linear(self._tape, x)
            if gate_host is up_host:
                up = gate = Value(gate.rows, gate.width // 2, gate.size, gate.grad, gate)
            else:
                up = up_host.linear(self._tape, x)
            self._tape.part = "activation functions"
            gate = self._tape.activation(gate, function.inputs, function.outputs)
            inner = self._tape.times(gate, up)
        self._tape.part = "linear maps"
        return _need(roles, "mlp.down").linear(self._tape, inner)

    def _heads(self, x: Value) -> None:
        """Head and loss. Heads that read one position keep all of the states that it is a view of."""
        self._tape.part = "head and loss"
        heads = [*self._outside["head.lm"], *self._outside["head.classifier"]]
        pooled = not self._outside["head.lm"] and (not heads or self._settings.class_name.endswith(_POOLED))
        if pooled and not self._is_decoder:
            x = Value(self._batch.size, x.width, x.size, x.grad, x.base or x)
        for host in self._outside["head.transform"]:
            x = host.linear(self._tape, x)
            function = FUNCTIONS["tanh"] if pooled else self._settings.function
            x = self._tape.activation(x, function.inputs, function.outputs)
        for host in self._outside["norm.head"]:
            x = self._normed(host, x)
        if self._outside["head.classifier"]:
            x = self._tape.dropout(x, self._settings.head_dropout if not self._is_decoder else 0.0)
        for host in heads:
            if host.weight:  # a bias that stands alone is part of the head beside it
                self._loss(host.linear(self._tape, x))

    def _loss(self, logits: Value) -> None:
        """Cross-entropy in float32: the log-probabilities and the targets are kept."""
        if logits.grad:
            self._tape.keep(Value(logits.rows, logits.width, max(logits.size, STATISTIC_BYTES), grad=False))
            self._tape.keep(Value(logits.rows, 1, _ID_BYTES, grad=False))


def _refuse(site: Site, known: frozenset[str]) -> None:
    if site.role not in known:
        name = site.name if site.role.startswith("other") else f"the role {site.role}"
        raise Unknown(f"{name} has no place in the walk")


def _need(roles: Mapping[str, Host], role: str) -> Host:
    if role not in roles:
        raise Unknown(f"a layer has no {role}")
    return roles[role]
