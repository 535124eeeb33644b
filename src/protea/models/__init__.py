"""Every model Protea knows, by name: `MODELS` is the one visible registry."""

from protea.models.adversarial.wgan import ENTRY as WGAN
from protea.models.autoregressive.architectures import ENTRIES as ARCHITECTURES
from protea.models.autoregressive.ngram import ENTRY as NGRAM
from protea.models.autoregressive.transformer import ENTRY as TRANSFORMER
from protea.models.boltzmann.family import BOLTZMANN_ENTRY, DBM_ENTRY, RBM_ENTRY
from protea.models.classical.gmm import ENTRY as GMM
from protea.models.classical.marginals import ENTRY as MARGINALS
from protea.models.classical.naive_bayes import ENTRY as NAIVE_BAYES
from protea.models.classical.table_mixture import ENTRY as MIXTURE
from protea.models.classical.tmm import ENTRY as TMM
from protea.models.diffusion.family import DIFFUSION, FLOW_MATCHING
from protea.models.entry import Entry
from protea.models.flow.spline_coupling import ENTRY as FLOW
from protea.models.latent.vae import ENTRY as VAE
from protea.models.markov.entry import ENTRY as HMM

# In the order a comparison takes them when its budget has no time for all.
ENTRIES: tuple[Entry, ...] = (
    MARGINALS,
    NAIVE_BAYES,
    MIXTURE,
    GMM,
    TMM,
    HMM,
    NGRAM,
    TRANSFORMER,
    *ARCHITECTURES,
    FLOW,
    VAE,
    FLOW_MATCHING,
    DIFFUSION,
    WGAN,
    RBM_ENTRY,
    DBM_ENTRY,
    BOLTZMANN_ENTRY,
)

MODELS: dict[str, Entry] = {entry.name: entry for entry in ENTRIES}
