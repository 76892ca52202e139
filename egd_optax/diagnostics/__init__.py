"""What a whitening did: before training, after some steps, factor by factor, and in the chain."""

from egd_optax.diagnostics._check import LeafCheck as LeafCheck
from egd_optax.diagnostics._check import WhiteningCheck as WhiteningCheck
from egd_optax.diagnostics._check import check_whitening as check_whitening
from egd_optax.diagnostics._check import whitening_plan as whitening_plan
from egd_optax.diagnostics._spectra import PolarReport as PolarReport
from egd_optax.diagnostics._spectra import Spectrum as Spectrum
from egd_optax.diagnostics._spectra import SpectrumMonitorState as SpectrumMonitorState
from egd_optax.diagnostics._spectra import polar_report as polar_report
from egd_optax.diagnostics._spectra import read_spectra as read_spectra
from egd_optax.diagnostics._spectra import spectrum_monitor as spectrum_monitor
