"""Jacobians and tangent kernels of callables."""

from isthmus.tangent._jacobian import JacobianSpectrum as JacobianSpectrum
from isthmus.tangent._jacobian import jacobian_spectrum as jacobian_spectrum
from isthmus.tangent._model_jacobian import MapJacobian as MapJacobian
from isthmus.tangent._model_jacobian import SampleMean as SampleMean
from isthmus.tangent._model_jacobian import map_jacobian as map_jacobian
