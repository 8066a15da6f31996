"""Jacobians and tangent kernels of callables."""

from isthmus.tangent._jacobian import JacobianSpectrum as JacobianSpectrum
from isthmus.tangent._jacobian import jacobian_spectrum as jacobian_spectrum
