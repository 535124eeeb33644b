"""Every model Protea knows, by name: `MODELS` is the one visible registry."""

from protea.models.classical.gmm import ENTRY as GMM
from protea.models.classical.marginals import ENTRY as MARGINALS
from protea.models.diffusion.family import DIFFUSION, FLOW_MATCHING
from protea.models.entry import Entry
from protea.models.flow.spline_coupling import ENTRY as FLOW

ENTRIES: tuple[Entry, ...] = (
    MARGINALS,
    GMM,
    DIFFUSION,
    FLOW_MATCHING,
    FLOW,
)

MODELS: dict[str, Entry] = {entry.name: entry for entry in ENTRIES}
