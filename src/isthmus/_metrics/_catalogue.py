"""Names of the numbers: one name, one definition, everywhere (docs/architecture.md)."""

from __future__ import annotations

from isthmus._errors import InputError, near_name_hint
from isthmus._metrics._metric import Metric
from isthmus._metrics._pairs import PAIRS


def _catalogue(*metrics: Metric) -> dict[str, Metric]:
    return {m.name: m for m in metrics}


_HAM_TRUST = "Means nothing far from stationarity: read it together with `stationarity`, which should be well below 1."
_COI_TRUST = "Depends on γ₀ (recorded in the note); it may lie below the rank."

_CERTIFIED = "arXiv 2305.19008, docs/theory 3.3"
_KERNEL = "arXiv 2305.19008, docs/theory 3.4"

_BOTTLENECK = (
    Metric("bottleneck_gap", "layer, chain", "‖W_ℓ − V_ℓV_{ℓ−1}ᵀ‖² + ‖b_ℓ‖² at the sample and k of bottleneck_bound; "
           "of a chain their sum", "squared weight", _CERTIFIED,
           "Below ¼, k singular values are within ½ of 1, the others below ½: so are those of an orthogonal matrix."),
    Metric("singular_values_near_one", "layer", "number of singular values of W_ℓ with |s − 1| < ½", "dimensions",
           _CERTIFIED, "Random matrices have some, too."),
    Metric("singular_values_near_one_centred", "layer", "the same of W_ℓ (I − m mᵀ), m the unit vector along the mean "
           "of what the layer reads", "dimensions", "arXiv 2305.19008, docs/theory 3.7"),
    Metric("neuron_balance", "layer",
           "Σ_i |‖row i of W_ℓ‖² + b²_{ℓ,i} − ‖column i of W_{ℓ+1}‖²| / (‖W_ℓ‖² + ‖b_ℓ‖² + ‖W_{ℓ+1}‖²)", "fraction",
           _KERNEL, "0 at a critical point of a loss with a ridge, where nothing else reads these neurons."),
    Metric("bottleneck_bound", "chain", "Δ = min over samples and k of ‖θ‖² − kL − 2 Σ_{i≤k} log s_i(Jf)",
           "squared weight", _CERTIFIED, "Holds for any weights; it says something where Δ/L is well below 1."),
    Metric("bottleneck_bound_median", "chain", "median over samples of the smallest bound over k", "squared weight",
           _CERTIFIED),
    Metric("certified_rank", "chain", "the k of bottleneck_bound", "dimensions", _CERTIFIED,
           "A large mean of the activations counts as a dimension."),
    Metric("bottleneck_tightness", "chain", "sum of bottleneck_gap / bottleneck_bound", "fraction", _CERTIFIED),
    Metric("bottleneck_share_within", "chain", "share of the layers with √bottleneck_gap < ε (recorded level)",
           "fraction", _CERTIFIED),
    Metric("bottleneck_share_certified", "chain", "1 − ⌊Δ/ε²⌋/L, at least 0: the share that the bound alone vouches "
           "for (recorded level ε)", "fraction", _CERTIFIED),
    Metric("norm_excess", "chain", "‖θ‖² − kL, with the k of bottleneck_bound", "squared weight", _CERTIFIED),
    Metric("regularity_bound", "chain", "2 Σ_{i≤k} log s_i(Jf) at the sample and k of bottleneck_bound", "nats",
           "arXiv 2305.19008, docs/theory 3.2",
           "A lower bound of R⁽¹⁾ where k is the bottleneck rank of the function."),
)  # fmt: skip
_STABILITY = (
    Metric("sharpness", "model", "(2/n) λ_max(Θ), Θ the tangent kernel of all parameters, uncentred",
           "squared outputs / squared weight", _KERNEL,
           "Of the squared error, summed over outputs and averaged over samples, near a good fit, on the recorded "
           "samples, of which few give too large a value. Averaged over outputs, too, it is smaller by their number."),
    Metric("largest_stable_rate", "model", "2 / sharpness: gradient descent without a ridge is stable below it",
           "squared weight / squared outputs", _KERNEL),
)  # fmt: skip

_COST = (
    Metric("representation_cost", "network of a depth", "‖θ‖², weights and biases, of a network trained on C + λ‖θ‖² "
           "(the depth L at index)", "squared weight", "arXiv 2305.19008, docs/theory 3.2",
           "An upper estimate of R(f; L): training may end above the least, and with a ridge f changes with L."),
    Metric("cost_rank", "fit over depths", "R⁽⁰⁾ of R(L) = L R⁽⁰⁾ + R⁽¹⁾ + R⁽²⁾/L", "dimensions",
           "arXiv 2305.19008, docs/theory 3.2"),
    Metric("cost_regularity", "fit over depths", "R⁽¹⁾ of the same fit", "nats", "arXiv 2305.19008, docs/theory 3.2",
           "An error of R⁽⁰⁾ moves it by about the mean depth times as much, the other way."),
    Metric("cost_second_order", "fit over depths", "R⁽²⁾ of the same fit", "nats²",
           "arXiv 2305.19008, docs/theory 3.2"),
    Metric("cost_slope", "fit over depths", "dR/dL = R⁽⁰⁾ − R⁽²⁾/L² (the depth L at index)", "squared weight / layer",
           "arXiv 2305.19008, docs/theory 3.2"),
    Metric("cost_regularity_bound", "network of a depth", "max over samples of 2 Σ_{i≤k} log s_i(Jf), k = R⁽⁰⁾ rounded",
           "nats", "arXiv 2305.19008, docs/theory 3.2",
           "‖θ‖² − kL is at least this in every network; R⁽¹⁾ is where R⁽⁰⁾ = k."),
    Metric("critical_residual", "network of a depth", "‖∇(C + λ‖θ‖²)‖ / (2λ‖θ‖)", "fraction",
           "arXiv 2305.19008, docs/theory 3.4", "0 at a critical point."),
)  # fmt: skip

_ALIGNED, _SIGNAL = "arXiv 2110.11749, docs/theory 4.1", "arXiv 2110.11749, docs/theory 4.3"

_ALIGNMENT = (
    Metric("alignment", "module",
           "A = ỹᵀ K ỹ / (‖K‖_F ‖ỹ‖²), K the tangent kernel (outputs × samples) of its own parameters, centred", "",
           _ALIGNED, "On the recorded samples; its standard error is over them where the kernel is exact."),
    Metric("alignment_traced", "module", "the same of the class-traced kernel Σ_c K^{cc} with Σ_c ỹ_c ỹ_cᵀ", "",
           _ALIGNED, "Not comparable with `alignment`: classes do not mix."),
    Metric("tangent_trace", "module, model", "Tr K / n, K the tangent kernel of its own parameters, uncentred",
           "squared outputs / squared weight", _KERNEL),
    Metric("tangent_top_eigenvalue", "model", "λ_max(Θ) / n, Θ the tangent kernel of all parameters, uncentred",
           "squared outputs / squared weight", _KERNEL,
           "Gradient descent is stable only below a learning rate of about 1 / (λ_max(Θ)/n + λ)."),
)  # fmt: skip
_PROPAGATION = (
    Metric("forward_loss", "representation", "1 − c_ℓ, c_ℓ the uncentred cosine of two samples' activations, averaged "
           "over pairs", "", _SIGNAL, "What is left to tell samples apart."),
    Metric("backward_correlation", "representation", "g_ℓ = ⟨J_ℓ(x), J_ℓ(x')⟩ / (‖J_ℓ(x)‖ ‖J_ℓ(x')‖), J_ℓ the outputs' "
           "derivatives at the activations, averaged over pairs", "", _SIGNAL),
    Metric("equilibrium_layer", "network", "ℓ* where 1 − c_ℓ falls to g_ℓ, between layers by interpolation", "layers",
           _SIGNAL, "Where the Equilibrium Hypothesis expects training to align layers most."),
    Metric("signal_slope", "network", "χ = σ_w² E φ'² at the fixed point of the variance: below 1 signals are ordered, "
           "at 1 critical, above chaotic", "", _SIGNAL),
)  # fmt: skip

METRICS: dict[str, Metric] = _catalogue(
    Metric(
        "numerical_rank",
        "representation, weight",
        "number of singular values above tol · s₁",
        "dimensions",
        "standard",
        "Counts what is above the recorded tol; noise above tol counts too.",
    ),
    Metric("stable_rank", "representation, weight", "‖M‖² / ‖M‖²_op", "dimensions", "standard"),
    Metric(
        "nuclear_rank",
        "representation, weight",
        "‖M‖*² / ‖M‖²",
        "dimensions",
        "arXiv 2405.17573, docs/theory 1.4",
        "A lower bound of the cost of identity without bias.",
    ),
    Metric("participation_ratio", "representation, weight", "(Σ s²)² / Σ s⁴", "dimensions", "standard"),
    Metric(
        "participation_ratio_centred",
        "representation",
        "(Σ s²)² / Σ s⁴ of the representation minus its mean",
        "dimensions",
        "standard",
    ),
    Metric(
        "effective_rank", "representation, weight", "exp of the entropy of s²/Σs² (in nats)", "dimensions", "standard"
    ),
    Metric(
        "cost_of_identity",
        "representation",
        "‖A‖²_{K+γ} = Tr[A (SᵀS + γI)⁻¹ Aᵀ], γ = γ₀‖S‖²_op",
        "dimensions",
        "arXiv 2405.17573, docs/theory 1.4",
        _COI_TRUST,
    ),
    Metric(
        "cost_of_identity_exact",
        "representation",
        "‖A S⁺‖², where the rows of A lie in the row space of S",
        "dimensions",
        "arXiv 2405.17573, docs/theory 1.4",
        "Infinite, hence skipped, where `identity_residual` is not 0.",
    ),
    Metric("identity_residual", "representation", "‖A − A S⁺S‖ / ‖A‖", "fraction", "arXiv 2405.17573, docs/theory 1.4"),
    Metric(
        "negative_fraction", "representation", "‖min(A, 0)‖² / ‖A‖²", "fraction", "arXiv 2405.17573, docs/theory 1.7"
    ),
    Metric("relative_move", "step", "‖A_ℓ − A_{ℓ−1}‖ / ‖A_ℓ‖", "fraction", "arXiv 2405.17573, docs/theory 1.3"),
    Metric(
        "path_speed",
        "step of a leaky path",
        "c_ℓ = ‖A_ℓ − A_{ℓ−1}‖ / (ρ_ℓ ‖A_ℓ‖)",
        "1 / depth",
        "arXiv 2405.17573, docs/theory 1.3",
    ),
    Metric(
        "path_length",
        "path",
        "∫‖∂_pA‖_{K+γ} dp",
        "√dimensions · depth⁻¹",
        "arXiv 2405.17573, docs/theory 1.6",
        _COI_TRUST,
    ),
    Metric(
        "path_length_euclidean",
        "path",
        "∫‖∂_pA‖ dp = Σ ‖A_ℓ − A_{ℓ−1}‖",
        "norm of A",
        "arXiv 2405.17573, docs/theory 1.7",
    ),
    Metric(
        "kinetic_energy",
        "step of a leaky path",
        "(1/2L̃) ‖∂_pA‖²_{K+γ}",
        "energy",
        "arXiv 2405.17573, docs/theory 1.4",
        _COI_TRUST,
    ),
    Metric(
        "hamiltonian",
        "step of a leaky path",
        "H(A_{ℓ−1}, B_ℓ) = (μ/2)‖B Sᵀ‖² − L̃ Tr[B Aᵀ]",
        "energy",
        "arXiv 2405.17573, docs/theory 1.5",
        _HAM_TRUST,
    ),
    Metric(
        "hamiltonian_symmetric",
        "step of a leaky path",
        "½ [H(A_{ℓ−1}, B_ℓ) + H(A_ℓ, B_ℓ)]",
        "energy",
        "arXiv 2405.17573, docs/theory 1.5",
        _HAM_TRUST,
    ),
    Metric(
        "hamiltonian_stable",
        "step of a leaky path",
        "(1/2L̃)‖∂_pA‖²_{K+γ} − (L̃/2)‖A‖²_{K+γ}",
        "energy",
        "arXiv 2405.17573, docs/theory 1.5",
        _COI_TRUST,
    ),
    Metric(
        "hamiltonian_rank",
        "step of a leaky path",
        "−(2/L̃) H(A_{ℓ−1}, B_ℓ)",
        "dimensions",
        "arXiv 2405.17573, docs/theory 1.5",
        _HAM_TRUST,
    ),
    Metric(
        "hamiltonian_rank_symmetric",
        "step of a leaky path",
        "−(2/L̃) × hamiltonian_symmetric",
        "dimensions",
        "arXiv 2405.17573, docs/theory 1.5",
        _HAM_TRUST,
    ),
    Metric(
        "hamiltonian_rank_stable",
        "step of a leaky path",
        "−(2/L̃) × hamiltonian_stable",
        "dimensions",
        "arXiv 2405.17573, docs/theory 1.5",
        _COI_TRUST,
    ),
    Metric(
        "stationarity",
        "step of a leaky path",
        "‖W_ℓ − μ B_ℓ S_{ℓ−1}ᵀ‖ / ‖W_ℓ‖",
        "fraction",
        "arXiv 2405.17573, docs/theory 1.5",
        "0 at a critical point; the Hamiltonian is noise where this is not small.",
    ),
    Metric(
        "momentum_norm",
        "layer of a leaky path",
        "‖B_ℓ‖, B_ℓ = −(1/λ) ∂C/∂A_ℓ",
        "1 / norm of A",
        "arXiv 2405.17573, docs/theory 1.5",
        _HAM_TRUST,
    ),
    Metric(
        "momentum_weight_norm",
        "step of a leaky path",
        "‖B_ℓ S_{ℓ−1}ᵀ‖",
        "√dimensions",
        "arXiv 2405.17573, docs/theory 1.7",
        _HAM_TRUST,
    ),
    Metric("layer_step", "step of a leaky path", "ρ_ℓ, with Σ ρ_ℓ = 1", "depth", "arXiv 2405.17573, docs/theory 1.1"),
    Metric(
        "weight_norm_sq", "step", "‖W_ℓ‖² with the bias column", "squared weight", "arXiv 2405.17573, docs/theory 1.2"
    ),
    Metric("bias_norm_sq", "step", "‖b_ℓ‖²", "squared weight", "arXiv 2405.17573, docs/theory 1.7"),
    Metric(
        "balance",
        "step of a leaky path",
        "|‖W_ℓ‖² − ‖W_1‖² − 2L̃ ∫‖b‖²dp| / max_ℓ ‖W_ℓ‖²",
        "fraction",
        "arXiv 2405.17573, docs/theory 1.7",
        "0 at a critical point of a ReLU or linear path, up to O(1/L).",
    ),
    Metric(
        "bound_lower",
        "path",
        "min_p ‖A‖²_{K+γ} − (ℓ/L̃ + √g)², below which −2H/L̃ cannot lie",
        "dimensions",
        "arXiv 2405.17573, Theorem 4, docs/theory 1.6",
        "Says nothing where g exceeds the rank.",
    ),
    Metric(
        "bound_upper",
        "path",
        "min_p ‖A‖²_{K+γ} + g, above which −2H/L̃ cannot lie",
        "dimensions",
        "arXiv 2405.17573, Theorem 4, docs/theory 1.6",
        "Says nothing where g exceeds the rank.",
    ),
    Metric("bound_slack", "path", "g = max_p γ_p ‖B_p‖²", "dimensions", "arXiv 2405.17573, Theorem 4, docs/theory 1.6"),
    Metric(
        "bottleneck_rank",
        "path",
        "k*: the agreed rank inside the bottleneck",
        "dimensions",
        "arXiv 2405.17573, docs/theory 1.6",
        "The verdict says which estimates agree.",
    ),
    Metric(
        "jacobian_log_singular_value",
        "model, averaged over samples",
        "log s_i of the input–output Jacobian",
        "nats",
        "arXiv 2405.17573, docs/theory 1.9",
        "The i-th is at index i; each direction costs 1 − m²/L̃² in −2H/L̃.",
    ),
    Metric(
        "jacobian_rank",
        "model, averaged over samples",
        "number of singular values of the input–output Jacobian above tol · s₁",
        "dimensions",
        "arXiv 2305.19008, docs/theory 3.2",
        "Counts what is above the recorded tol; at most the smaller of input and output dimension.",
    ),
    Metric(
        "jacobian_log_pseudodet",
        "model, averaged over samples",
        "Σ log s_i of the input–output Jacobian over the s_i above tol · s₁",
        "nats",
        "arXiv 2305.19008, docs/theory 3.2",
        "Jumps where a singular value crosses tol · s₁.",
    ),
    *_BOTTLENECK,
    Metric(
        "backward_norm",
        "representation",
        "‖∂C/∂A‖, with the mean over samples inside C",
        "loss / norm of A",
        "standard",
    ),
    Metric(
        "backward_participation_ratio",
        "representation",
        "(Σ s²)² / Σ s⁴ of ∂C/∂A",
        "dimensions",
        "standard",
    ),
    Metric(
        "observations",
        "module",
        "number of samples (positions of a sample count each) behind a module's numbers",
        "",
        "docs/theory 1.4",
        "Ranks of fewer than ten observations per unit of width are limited by the sample.",
    ),
    *_ALIGNMENT,
    *_STABILITY,
    *_COST,
    *_PROPAGATION,
    *PAIRS,
    Metric("loss", "training", "C, the data term of the objective", "loss", "arXiv 2405.17573, docs/theory 1.2"),
    Metric("ridge_term", "training", "(λ/2μ) Σ ρ_ℓ ‖W_ℓ‖²", "loss", "arXiv 2405.17573, docs/theory 1.2"),
    Metric("learning_rate", "training", "step size of the optimiser", "", "training loop"),
    Metric(
        "rank_estimate",
        "training",
        "median of hamiltonian_rank_symmetric over p in [0.1, 0.9], while training",
        "dimensions",
        "arXiv 2405.17573, docs/theory 1.5",
        _HAM_TRUST,
    ),
    Metric(
        "gradient_norm",
        "training",
        "norm of the objective's gradient over the trained parameters",
        "loss / weight",
        "training loop",
    ),
    Metric("accuracy", "training", "share of samples whose largest output is their class", "fraction", "standard"),
    Metric("r_squared", "training", "1 − Σ‖y − f(x)‖² / Σ‖y − ȳ‖²", "fraction", "standard"),
)
"""Every metric a table may hold: one name, one definition, everywhere."""


def check_metric(name: str) -> Metric:
    """The definition of `name`, or `InputError` with the nearest known names."""
    if name not in METRICS:
        raise InputError("metric", name, "a metric of this version", near_name_hint(name, METRICS))
    return METRICS[name]
