"""Networks (arXiv 2405.17573, 2305.19008 and 2402.09142, docs/theory 1.1, 3.1 and 2.5)."""

from isthmus.models._activations import Activation as Activation
from isthmus.models._activations import SmoothReLU as SmoothReLU
from isthmus.models._checks import check_device as check_device
from isthmus.models._checks import real_number as real_number
from isthmus.models._checks import whole_number as whole_number
from isthmus.models._ensemble import LeakyEnsemble as LeakyEnsemble
from isthmus.models._fully_connected import FullyConnected as FullyConnected
from isthmus.models._fully_connected import deepen as deepen
from isthmus.models._leaky_convert import convert as convert
from isthmus.models._leaky_resnet import LeakyResNet as LeakyResNet
from isthmus.models._leaky_stack import LeakyBlock as LeakyBlock
from isthmus.models._leaky_stack import LeakyStack as LeakyStack
from isthmus.models._path_function import leaky_path as leaky_path
from isthmus.models._path_function import path_gradients as path_gradients
from isthmus.models._steps import Adaptive as Adaptive
from isthmus.models._steps import Equidistant as Equidistant
from isthmus.models._steps import Irregular as Irregular
from isthmus.models._steps import LayerSteps as LayerSteps
from isthmus.models._steps import as_steps as as_steps
from isthmus.models._zoo import ZOO as ZOO
from isthmus.models._zoo import ZooEnsemble as ZooEnsemble
from isthmus.models._zoo import ZooNetwork as ZooNetwork
from isthmus.models._zoo import ZooSetting as ZooSetting
from isthmus.models._zoo import zoo_network as zoo_network
