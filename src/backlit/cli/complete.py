"""What a shell offers when a name is half typed. The names are written down here: a shell does not wait for torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from backlit.bench import FAST

METHOD_NAMES = tuple(
    (
        "dmbp lpr tr_gbp mip_in pattern_net pattern_attribution l2x fullgrad bbp lrp deep_taylor excitation_backprop "
        "deeplift deep_shap occlusion rise pda meaningful_perturbation extremal_perturbation lime kernel_shap "
        "integrated_gradients expected_gradients blur_ig guided_ig xrai smooth_grad squared_smooth_grad var_grad "
        "grad_cam guided_grad_cam grad_cam_plus_plus xgrad_cam hires_cam layer_cam norm_grad cam score_cam cameras "
        "pfv attention_rollout gradient_rollout legrad guided_backprop deconvnet libragrad gradient_x_input saliency "
        "gradient random centre edges constant"
    ).split()
)
METRIC_NAMES = tuple(
    (
        "insertion complementary_insertion deletion morf_5 lerf_5 morf_100 lerf_100 pointing_game energy_pointing_game "
        "box_accuracy grid_pointing_game difull ibd ibd_auc last_layer_reset cascading_reset smooth_mprt efficient_mprt "
        "class_sensitivity apc positive_apc infidelity max_sensitivity road_morf road_lerf average_drop average_increase "
        "average_gain idsds sensitivity_n irof aic sic sparseness complexity"
    ).split()
)
MODEL_NAMES = tuple(
    "digits cifar_resnet20 cifar_cnn alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 "
    "mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_y_400mf resnet18 resnet34 resnet50 resnet101 resnext50_32x4d "
    "shufflenet_v2_x1_0 squeezenet1_0 squeezenet1_1 swin_t vgg16 vgg16_bn vgg19 vit_b_16 wide_resnet50_2 timm:".split()
)


def methods(incomplete: str) -> Iterator[str]:
    """Offer methods, also behind the comma of a list."""
    return _behind_comma(incomplete, (*METHOD_NAMES, FAST, "all"))


def metrics(incomplete: str) -> Iterator[str]:
    """Offer metrics, also behind the comma of a list."""
    return _behind_comma(incomplete, METRIC_NAMES)


def models(incomplete: str) -> Iterator[str]:
    """Offer the embedded networks and the usual ones of torchvision."""
    return (name for name in MODEL_NAMES if name.startswith(incomplete))


def _behind_comma(incomplete: str, names: Sequence[str]) -> Iterator[str]:
    before, comma, last = incomplete.rpartition(",")
    return (f"{before}{comma}{name}" for name in names if name.startswith(last) and name not in before.split(","))
