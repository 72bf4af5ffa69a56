"""Arrays in, numbers out: the mathematics of layerstats, with no names, paths or tables in it.

norms.py        Frobenius norm, mean |w|, norms of low-rank updates
outliers.py     LOD of a block for many M                column_sums.py  its first pass
compiled.py     both passes of LOD by numba, where it is installed
symmetric.py    BLAS and LAPACK beneath the spectrum, called without Python's lock
spectrum.py     eigenvalues of W^T W and their norms     noise.py        Marchenko-Pastur edge
powerlaw.py     Hill alpha by three rules for xmin       tails.py        the search behind them
certified.py    the same fits from float32, where error bars allow (approximate.py)
blocks.py       how all of them walk through a matrix in cache-sized pieces
"""

from __future__ import annotations

from layerstats.numerics.certified import SpectrumFits as SpectrumFits
from layerstats.numerics.certified import certified_fits as certified_fits
from layerstats.numerics.column_sums import column_abs_sums as column_abs_sums
from layerstats.numerics.noise import NoiseEdge as NoiseEdge
from layerstats.numerics.noise import noise_edge as noise_edge
from layerstats.numerics.norms import WeightNorms as WeightNorms
from layerstats.numerics.norms import frobenius_norm as frobenius_norm
from layerstats.numerics.norms import low_rank_norm as low_rank_norm
from layerstats.numerics.norms import mean_abs as mean_abs
from layerstats.numerics.norms import updated_norm as updated_norm
from layerstats.numerics.norms import weight_norms as weight_norms
from layerstats.numerics.outliers import BlockOutliers as BlockOutliers
from layerstats.numerics.outliers import block_outliers as block_outliers
from layerstats.numerics.powerlaw import PeakFit as PeakFit
from layerstats.numerics.powerlaw import PowerLawFit as PowerLawFit
from layerstats.numerics.powerlaw import fit_ks as fit_ks
from layerstats.numerics.powerlaw import fit_mid as fit_mid
from layerstats.numerics.powerlaw import fit_peak as fit_peak
from layerstats.numerics.spectrum import MatrixError as MatrixError
from layerstats.numerics.spectrum import esd as esd
from layerstats.numerics.spectrum import spectral_norm as spectral_norm
from layerstats.numerics.spectrum import stable_rank as stable_rank
from layerstats.numerics.spectrum import zero_threshold as zero_threshold
