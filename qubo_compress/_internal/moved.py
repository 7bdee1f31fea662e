"""Old import paths of modules, kept for one release: they work and warn."""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec

PACKAGE = __name__.partition(".")[0]

MOVED = {
    "audit": "audits",
    "audit.audit": "audits.audit",
    "audit.churn": "audits.churn",
    "audit.classes": "audits.classes",
    "audit.exemplars": "audits.exemplars",
    "audit.intervals": "calibration.intervals",
    "audit.long_tail": "audits.long_tail",
    "audit.margins": "audits.margins",
    "audit.memorization": "audits.memorization",
    "audit.mismatches": "audits.mismatches",
    "audit.regression": "audits.regression",
    "channels.reading": "recovery.reading",
    "close": "pipeline.close",
    "comparison": "selection.comparison",
    "compiling": "_internal.compiling",
    "compress": "pipeline.compress",
    "conditioning": "problem.subproblems",
    "energy_scale": "problem.energy_scale",
    "evaluation": "calibration.evaluation",
    "example_weights": "calibration.weights",
    "examples": "calibration.examples",
    "factored": "menu.low_rank.factored",
    "file_format": "menu.storage.file_format",
    "finals": "pipeline.finals",
    "front": "selection.front",
    "menu.analog": "menu.unreliable.analog",
    "menu.canonical": "menu.low_rank.cp",
    "menu.coded": "menu.coding.coded",
    "menu.compensate": "menu.compensation.compensate",
    "menu.compensating": "menu.compensation.layer_error",
    "menu.compensation_kernels": "menu.compensation.kernels",
    "menu.compensation_qubo": "menu.compensation.qubo",
    "menu.digital": "menu.unreliable.digital",
    "menu.encoding": "menu.storage.many",
    "menu.entropy_contexts": "menu.coding.contexts",
    "menu.entropy_kernels": "menu.coding.kernels",
    "menu.entropy_models": "menu.coding.models",
    "menu.entropy_parts": "menu.coding.parts",
    "menu.entropy_writer": "menu.coding.writer",
    "menu.forms": "menu.low_rank.forms",
    "menu.frequency_bands": "menu.frequency.bands",
    "menu.groups": "network.discovery",
    "menu.lattice": "menu.coding.lattice",
    "menu.masked": "menu.storage.stored",
    "menu.older_groups": "network.older_groups",
    "menu.packing": "menu.storage.packing",
    "menu.patterns": "network.patterns",
    "menu.rate": "menu.coding.rate",
    "menu.roles": "network.roles",
    "menu.row_kernels": "menu.storage.row_kernels",
    "menu.stages": "menu.low_rank.stages",
    "menu.stored_groups": "network.stored_groups",
    "menu.stored_parts": "menu.storage.parts",
    "menu.streams": "menu.storage.streams",
    "menu.svd": "menu.low_rank.svd",
    "menu.tensor_train": "menu.low_rank.tensor_train",
    "menu.tucker": "menu.low_rank.tucker",
    "menu.vectors": "menu.storage.vectors",
    "optional": "_internal.optional",
    "pairs": "problem.pairs",
    "passes": "calibration.passes",
    "problem_checks": "problem.checks",
    "problem_file": "problem.file",
    "problem_generators": "problem.generators",
    "ranking": "pruning.weight_scores",
    "problem.conditioning": "problem.subproblems",
    "problem.reductions": "problem.subproblems",
    "reductions": "problem.subproblems",
    "refinement": "pipeline.refinement",
    "registry": "_internal.registry",
    "report.audit_section": "audits.section",
    "report.page": "page.html",
    "report.tail_pictures": "audits.pictures",
    "sensitivity.backward": "sensitivity.example_gradients",
    "sensitivity.custom_loss": "network.losses.custom",
    "sensitivity.fitting_loss": "calibration.fitting_loss",
    "sensitivity.forward": "sensitivity.forward_sweep",
    "sensitivity.gauss_newton": "sensitivity.metrics.gauss_newton",
    "sensitivity.loss_signature": "network.losses.signature",
    "sensitivity.losses": "network.losses.classification",
    "sensitivity.magnitude": "sensitivity.metrics.magnitude",
    "sensitivity.pairwise": "sensitivity.metrics.pairwise",
    "sensitivity.prices": "sensitivity.costs",
    "sensitivity.regression_losses": "network.losses.regression",
    "sensitivity.replay": "network.replay",
    "sensitivity.task": "sensitivity.metric",
    "solvers.annealer_jobs": "solvers.annealer.jobs",
    "solvers.annealer_kernels": "solvers.annealer.kernels",
    "solvers.annealer_kicks": "solvers.annealer.kicks",
    "solvers.annealer_moves": "solvers.annealer.moves",
    "solvers.annealer_opening": "solvers.annealer.opening",
    "solvers.annealer_polish": "solvers.annealer.polish",
    "solvers.annealer_tables": "solvers.annealer.tables",
    "solvers.band_programming": "solvers.exact.band_programming",
    "solvers.bounds": "solvers.exact.bounds",
    "solvers.branch_and_bound": "solvers.exact.branch_and_bound",
    "solvers.branch_kernels": "solvers.exact.branch_kernels",
    "solvers.branch_nodes": "solvers.exact.branch_nodes",
    "solvers.certificates": "solvers.exact.certificates",
    "solvers.clado": "solvers.opponents.clado",
    "solvers.decomposition_blocks": "solvers.decomposition.blocks",
    "solvers.dwave_answers": "solvers.dwave.answers",
    "solvers.dwave_client": "solvers.dwave.client",
    "solvers.dwave_connection": "solvers.dwave.connection",
    "solvers.dwave_errors": "solvers.dwave.errors",
    "solvers.dwave_token": "solvers.dwave.token",
    "solvers.dwave_transport": "solvers.dwave.transport",
    "solvers.dwave_waiting": "solvers.dwave.waiting",
    "solvers.dynamic_programming": "solvers.exact.dynamic_programming",
    "solvers.evopress": "solvers.opponents.evopress",
    "solvers.genetic": "solvers.opponents.genetic",
    "solvers.genetic_operators": "solvers.opponents.genetic_operators",
    "solvers.infeasibility": "solvers.exact.infeasibility",
    "solvers.integer_programming": "solvers.exact.integer_programming",
    "solvers.leap": "solvers.dwave.leap",
    "solvers.leap_models": "solvers.dwave.leap_models",
    "solvers.leap_prices": "solvers.dwave.leap_prices",
    "solvers.leap_search": "solvers.dwave.leap_search",
    "solvers.leap_terms": "solvers.dwave.leap_options",
    "solvers.local_model": "solvers.local_search.local_model",
    "solvers.messages": "solvers.exact.message_passing",
    "solvers.milp_process": "solvers.exact.milp_process",
    "solvers.minor_embedding": "solvers.dwave.minor_embedding",
    "solvers.openjij": "solvers.samplers.openjij",
    "solvers.path_integral": "solvers.samplers.path_integral",
    "solvers.price_kernels": "solvers.exact.price_kernels",
    "solvers.qpu": "solvers.dwave.qpu",
    "solvers.qpu_device": "solvers.dwave.qpu_device",
    "solvers.qpu_embedding": "solvers.dwave.qpu_embedding",
    "solvers.qpu_fit": "solvers.dwave.qpu_fit",
    "solvers.qpu_sampling": "solvers.dwave.qpu_sampling",
    "solvers.qpu_search": "solvers.dwave.qpu_search",
    "solvers.qubo_model": "solvers.samplers.binary_model",
    "solvers.qubo_search": "solvers.samplers.loop",
    "solvers.random_search": "solvers.random",
    "solvers.real_loss": "solvers.opponents.network_loss",
    "solvers.reinforcement": "solvers.opponents.reinforcement",
    "solvers.reinforcement_agents": "solvers.opponents.reinforcement_agents",
    "solvers.reinforcement_environment": "solvers.opponents.reinforcement_environment",
    "solvers.relaxation": "solvers.exact.convex_relaxation",
    "solvers.relaxation_kernels": "solvers.exact.relaxation_kernels",
    "solvers.sampler_pace": "solvers.samplers.sampler",
    "solvers.simulated_annealing": "solvers.samplers.simulated_annealing",
    "solvers.simulated_bifurcation": "solvers.samplers.simulated_bifurcation",
    "solvers.softmax_relaxation": "solvers.opponents.relaxation",
    "solvers.spdy": "solvers.opponents.spdy",
    "solvers.steepest_descent": "solvers.samplers.steepest_descent",
    "solvers.strengthening": "solvers.exact.strengthening",
    "solvers.tabu": "solvers.samplers.tabu",
    "statistics": "calibration.statistics",
    "statistics.curvature": "calibration.statistics.curvature",
    "statistics.gradients": "calibration.statistics.gradients",
    "statistics.input_moments": "calibration.statistics.input_moments",
    "statistics.inverse_fisher": "calibration.statistics.inverse_fisher",
    "statistics.statistic": "calibration.statistics.statistic",
    "stitched": "sensitivity.stitched_loss",
    "substitution": "network.every_layer",
}
"""Old path of a module of 0.4 -> its new path, both relative to the package."""


class MovedModules(MetaPathFinder):
    """Finds a moved module under its old name, with a warning that names the new path."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of the module that replaced an old one; None for everything else."""
        package, _, name = fullname.partition(".")
        new = MOVED.get(name) if package == PACKAGE else None
        return None if new is None else ModuleSpec(fullname, _Moved(f"{PACKAGE}.{new}"))


class _Moved(Loader):
    def __init__(self, new: str) -> None:
        self.new = new
        self.spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        warnings.warn(
            f"{spec.name} is now {self.new}; the old path goes with the next release", DeprecationWarning, stacklevel=2
        )
        module = importlib.import_module(self.new)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = self.spec  # importlib has just put the old name there


class Package(types.ModuleType):
    """The type of the package, whose public functions are not hidden by modules of the same name.

    Importing a submodule makes it an attribute of its package: the old modules `compress` and `audit` would replace the
    functions of these names.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in ("audit", "compress") and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


def keep_old_paths() -> None:
    """Make old paths importable from now on.

    Its finder goes first: a folder that an update left behind, empty except for caches, would count as a package.
    """
    sys.meta_path.insert(0, MovedModules())
    sys.modules[PACKAGE].__class__ = Package
