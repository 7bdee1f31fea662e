"""The network that is left when channels were removed, stored with any choices for its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from qubo_compress.calibration.statistics.statistic import Calibration
from qubo_compress.menu.operator import Operator, looks_at_data, stored_as
from qubo_compress.menu.storage.file_format import fixed_bytes
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.network.channels import Removal
from qubo_compress.network.discovery import discover_stored
from qubo_compress.network.groups import Group
from qubo_compress.network.inputs import Inputs
from qubo_compress.network.losses.classification import make_loss
from qubo_compress.network.replay import run_model
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.plan import Plan
from qubo_compress.sensitivity.cache import UnitCache
from qubo_compress.sensitivity.choices import StoredChoices
from qubo_compress.sensitivity.preparation import calls_of, unseen_inputs
from qubo_compress.sensitivity.specimen import Specimen


@dataclass(frozen=True, eq=False)
class Remainder:
    """A network without some channels.

    Attributes:
        model: the smaller network, whose layers make up for what left.
        removal: what was removed.
        changed: names of the tensors that make up for it, which the original network does not hold.
        whole: the network before, and its calibration examples.
        weights: signature of that network.
    """

    model: nn.Module
    removal: Removal
    changed: frozenset[str]
    whole: Specimen
    weights: str

    def replaced(self, model: nn.Module) -> Remainder:
        """The same with other values.

        Args:
            model: of the smaller network's shapes.
        """
        before, now = NetworkTensors(self.model), NetworkTensors(model)
        changed = {name for name, value in now.items() if not torch.equal(value.detach(), before[name].detach())}
        return replace(self, model=model, changed=self.changed | changed)

    def specimen(self) -> Specimen:
        """The smaller network as one to be measured by layers."""
        layout = discover_stored(self.model, "layer")
        settings = replace(self.whole.settings, groups="layer")
        return replace(self.whole, model=self.model, layout=layout, settings=settings)

    def stored(
        self, choices: Mapping[str, str], menu_names: tuple[str, ...]
    ) -> tuple[dict[str, str], dict[str, bytes], int]:
        """Store every layer of the smaller network.

        Args:
            choices: layer -> choice; a layer that is missing is kept.
            menu_names: that the file lists.

        Returns:
            Choices: ``keep`` where what is left of a layer does not suit the one given. Bytes of every layer that
            differs from the original's or looked at data. The size of the whole file.
        """
        tensors, layout = NetworkTensors(self.model), discover_stored(self.model, "layer")
        payloads, used, size = dict[str, bytes](), dict[str, str](), fixed_bytes(layout, menu_names)
        calibration: Calibration | None = None
        for group in layout.groups:
            operator, name = self._suitable(group, tensors.parts(group), choices.get(group.name, "keep"))
            if looks_at_data(operator):
                calibration = calibration or self._calibration()
                made = StoredChoices(replace(layout, groups=(group,)), [{name: operator}], tensors, calibration)
                made.make_from_data(0, UnitCache(None, {}))
                stored = made.packed(0)[0]
            else:
                stored = stored_as(name, group, tensors.parts(group))
            used[group.name] = name
            size += stored.nbytes
            if looks_at_data(operator) or any(member.name in self.changed for member in group.members):
                payloads[group.name] = stored.to_bytes()
        return used, payloads, size

    def on_whole(self, plan: Plan) -> Plan:
        """A plan of the smaller network by layers, as one of the network before."""
        tensors, layout = NetworkTensors(self.model), discover_stored(self.model, "layer")
        payloads = dict(plan.payloads)
        for group in layout.groups:
            if group.name not in payloads and any(member.name in self.changed for member in group.members):
                stored = self._stored(plan, group, tensors)
                payloads[group.name] = stored.to_bytes()
        return replace(
            plan, payloads=payloads, fits={}, removal=self.removal, weights=self.weights,
            original_bytes=self.whole.layout.original_bytes, parameters=self.whole.layout.parameters,
        )  # fmt: skip

    @staticmethod
    def _stored(plan: Plan, group: Group, tensors: NetworkTensors) -> Stored:
        return stored_as(plan.choices[group.name], group, tensors.parts(group), None, plan.fits.get(group.name))

    def _suitable(self, group: Group, parts: list[Tensor], name: str) -> tuple[Operator, str]:
        """The choice of that name, or ``keep`` if it does not suit what is left of the layer, and its name."""
        menu = self.whole.settings.offered
        operator = menu.operator(name)
        return (operator, name) if operator.refusal(group, parts) is None else (menu.operator("keep"), "keep")

    def _calibration(self) -> Calibration:
        examples, settings = self.whole.examples, self.whole.settings

        def rows(inputs: Inputs) -> Tensor:
            return examples.reading.rows(run_model(self.model, inputs))

        calls = calls_of(NetworkTensors(self.model), examples, None)
        unseen = frozenset(unseen_inputs(discover_stored(self.model, "layer"), calls))
        return Calibration(self.model, examples, make_loss(settings.loss), rows, settings.seed, unseen)
