"""The table of mutations.py: for each file, and each test that must notice, names with what is changed to what.

The text to be changed is there once in its file, and short, so that work beside it does not make it stale.
"""

from __future__ import annotations

Change = tuple[str, str, str]  # name, old text, new text


def _in(file: str) -> str:
    return f"tests/{file}.py::test_"


ROOTS = _in("test_roots")
BALLS, LOSSES, PGD = _in("test_threat"), _in("engine/test_losses"), _in("attacks/test_pgd")
FAB, HALFSPACE, STEPS = _in("attacks/test_fab"), _in("engine/test_hyperplane"), _in("attacks/test_nearest")
REFUSED, ATTEMPTS = _in("engine/test_refused_hits"), _in("engine/test_best_attempts")
TARGETS, ROUNDING = _in("attacks/test_targets"), _in("evaluator/test_rounding")
SEARCH, PROMISES, SETS = _in("engine/test_search"), _in("engine/test_promises"), _in("attacks/test_autoattack")
CORRUPTIONS, SECOND = _in("evaluator/test_corruptions"), _in("evaluator/test_fp32_recheck")
EVALUATE = _in("evaluator/test_evaluate")
PLUGINS, EXTERNAL = _in("cli/test_plugins"), _in("attacks/test_external")
NUMBERS, WALK, RECORD = _in("test_rng"), _in("evaluator/test_eps_grid"), _in("test_record")
CLOSED, COPY = _in("attacks/test_closed_form"), _in("engine/search_copy/test_copy")
ABSTAIN, QUICK = _in("evaluator/test_abstain"), _in("evaluator/test_quick")
FELLS = f"{CLOSED}fells_all_that_can_fall_and_none_other"
NEAREST = f"{CLOSED}nearest_point_is_at_the_exact_distance"
SEVERAL = f"{CLOSED}the_nearest_of_several_classes_is_found"
VALUES = f"{LOSSES}values_and_gradients_are_those_of_the_definition"
APGD, SQUARE = (f"{_in(f'attacks/test_{name}_reference')}every_query_is_the_packages" for name in ("apgd", "square"))
RAYS = _in("attacks/test_rays")
MARGINS, JUMPS = _in("attacks/test_margins"), _in("attacks/test_hopskipjump")
BUDGET = _in("evaluator/test_attack_budget")
FIT, COUNTED = f"{BUDGET}an_attack_makes_as_many_passes_as_fit", f"{BUDGET}settings_that_cost_passes_are_counted"
CERTIFY = _in("test_certify")
CONTAIN = f"{CERTIFY}bounds_of_every_layer_contain_what_points_of_the_ball_give"
MINIMUM = f"{CERTIFY}certified_is_below_the_exact_minimum_and_branching_reaches_it"
STANDARD = f"{SETS}standard_is_the_papers_set"

MUTANTS: dict[str, dict[str, list[Change]]] = {
    "advbench/certify/relaxations.py": {
        MINIMUM: [("relu-chord", "(slope - 1) * low * high / width", "0.5 * (slope - 1) * low * high / width")],
        f"{CONTAIN}[max pool first-linf]": [("pool-chord", "m - slope * least", "m - slope * most")],
        f"{CONTAIN}[sigmoid-linf]": [("sigmoid-slope", "slope = torch.minimum", "slope = torch.maximum")],
    },
    "advbench/certify/bounds.py": {
        MINIMUM: [("lines-swapped", "[positive * a + negative * lines.c[image]]", "[at * a]")],
        f"{CONTAIN}[residual-linf]": [("upper-bound-sign", "high[image, unit], -above)", "high[image, unit], above)")],
        f"{CERTIFY}bounds_hold_for_float32_where_sums_cancel": [
            ("bounds-without-rounding", "low, high = low - rounding, high + rounding", "pass"),
        ],
        f"{CERTIFY}linear_nets_are_certified_up_to_their_margins[l2]": [
            ("half-radius", "self.radius[image] * dual", "0.5 * self.radius[image] * dual"),
        ],
        f"{CERTIFY}multipliers_bound_what_has_the_assumed_signs": [
            ("multiplier-sign", "pulled[0] - multipliers[number]", "pulled[0] + multipliers[number]"),
        ],
    },
    "advbench/certify/certify.py": {
        f"{CERTIFY}images_that_need_branching_are_proved_alike_beside_others_that_do_not": [
            ("another-image", "found.pick(place[image, None])", "found.pick(place[image, None] * 0)"),
        ],
    },
    "advbench/certify/branching.py": {MINIMUM: [("one-branch", "len(each), unit] = -1", "len(each), unit] = 1")]},
    "advbench/threat.py": {
        f"{FELLS}[pgd-linf-False]": [
            ("linf-half-ball", "e = eps.to(x.dtype)", "e = 0.5 * eps.to(x.dtype)"),
            ("linf-large-ball", "(x + e).clamp_max(1)", "(x + 1.1 * e).clamp_max(1)"),
        ],
        f"{FELLS}[pgd-fourier-linf-False]": [("fourier-half-ball", "f * (allowed /", "f * (0.5 * allowed /")],
        f"{FELLS}[fgsm-l2-False]": [
            ("l2-direction-of-signs", "return g / _rows(length", "return g.sign() * g.abs().amax() / _rows(length"),
        ],
        f"{FELLS}[fgsm-fourier-linf-False]": [("fourier-direction", "passes / f.abs().clamp_min(_TINY)", "passes")],
        f"{BALLS}projection_lands_inside_and_leaves_what_is_inside": [
            ("linf-no-projection", "torch.clamp(z, self.low, self.high)", "torch.clamp(z, 0, 1)"),
            ("l2-no-projection", "s.sqrt().clamp_max(1)", "torch.ones_like(s)"),
            ("fourier-no-projection", "d * shrink).clamp", "d).clamp"),
        ],
        f"{BALLS}l2_projection_is_the_nearest_point": [
            ("l2-half-ball", "self.eps.to(x.dtype)[:, None] ** 2", "0.25 * self.eps.to(x.dtype)[:, None] ** 2"),
            ("l2-ball-then-box", "** 2, _MAX_ROUNDS)", "** 2, 0)"),
        ],
        f"{BALLS}l1_projection_is_the_nearest_point": [
            ("l1-half-ball", "x, eps = self.x.flatten(1), self", "x, eps = self.x.flatten(1), 0.5 * self"),
            ("l1-ball-then-box", "falling(a, reach, eps)", "falling(a, reach + 9, eps)"),
        ],
        f"{BALLS}fourier_projection_is_nearly_the_nearest_point": [
            ("fourier-once", "range(_MAX_FOURIER_ROUNDS)", "range(1)")
        ],
        f"{BALLS}fourier_ascent_on_dark_images_gains_nearly_what_many_rounds_do": [
            ("fourier-4-rounds", "_MAX_FOURIER_ROUNDS = 16", "_MAX_FOURIER_ROUNDS = 4"),
        ],
        f"{BALLS}steepest_attains_the_dual_norm": [
            ("l1-least-element", "flat.abs().argmax(1", "flat.abs().argmin(1"),
            ("linf-dual", "g.abs().flatten(1).sum(1)", "g.abs().flatten(1).amax(1)"),
        ],
        f"{BALLS}no_direction_gains_more_than_the_dual_norm": [
            ("l1-size", "d.abs().flatten(1).sum(1)", "d.abs().flatten(1).amax(1)"),
        ],
        f"{BALLS}samples_fill_the_ball_evenly": [
            ("linf-start-one-sided", "tuple(self.x.shape[1:])) * 2 - 1", "tuple(self.x.shape[1:]))"),
            ("l2-start-inner", "** (1 / self.x[0].numel())", "** 1"),
        ],
        f"{BALLS}a_band_holds_directions_to_its_frequencies": [
            ("band-from-0", "(radius >= band[0])", "(radius >= 0)"),
            (
                "band-projection",
                "allowed, enough = self.passes * self.e,",
                "allowed, enough = self.e + 0 * self.passes,",
            ),
        ],
        f"{BALLS}what_leaks_from_a_band_is_the_energy_outside_of_it": [
            ("leak-inside", "energy * ~_in_band", "energy * _in_band"),
        ],
        f"{BALLS}membership_is_exact_for_linf_and_has_the_stated_tolerance_for_l2": [
            ("ball-too-tolerant", "(1 + 1e-5)", "(1 + 1e-3)"),
        ],
    },
    "advbench/roots.py": {
        f"{ROOTS}the_rising_sum_reaches_its_level": [
            ("rising-without-the-spent", "(level - spent)", "(level - 0 * spent)"),
            ("rising-no-rounds", "in range(rounds)", "in range(0)"),
        ],
        f"{ROOTS}a_level_out_of_reach_leaves_no_element_short": [
            ("rising-begins-anew", "torch.fmax(t, (level - spent) / speed)", "(level - spent) / speed"),
        ],
        f"{ROOTS}a_sum_of_nothing_has_a_root": [
            ("rising-nothing", ".clamp_min(torch.finfo(weights.dtype).tiny)", ".clamp_min(0)"),
        ],
        f"{ROOTS}the_falling_sum_comes_down_to_its_level": [
            ("falling-wrong-part", "level, right=True)", "-level, right=True)"),
        ],
        f"{ROOTS}one_far_element_costs_the_others_no_precision": [
            ("falling-not-solved", "alpha=part), exact, high)", "alpha=part), high, high)"),
        ],
        f"{ROOTS}what_is_below_the_level_is_not_shifted": [("falling-always", "<= level, zero", "< 0, zero")],
    },
    "advbench/engine/losses.py": {
        f"{LOSSES}what_is_not_finite_is_wrong": [("nan-is-right", "other | ((logits * 0).sum(1) != 0)", "other")],
        f"{VALUES}[ce-False]": [("ce-flipped", "torch.where(towards, -loss, loss)", "-loss")],
        f"{VALUES}[ce-True]": [
            ("ce-targeted-sign", "torch.where(towards, -loss, loss)", "loss"),
            ("ce-target-ignored", "torch.where(towards, target, y), red", "y, red"),
        ],
        f"{VALUES}[cw-False]": [
            ("cw-flipped", "return reached - own", "return own - reached"),
            ("rival-is-own", "-torch.inf).argmax(1)", "torch.inf).argmax(1)"),
        ],
        f"{VALUES}[dlr-False]": [
            ("dlr-flipped", "(reached - own) /", "(own - reached) /"),
            ("dlr-not-scaled", "(first - lower + 1e-12)", "1"),
        ],
        f"{VALUES}[dlr-True]": [("dlr-targeted-scale", "(third + fourth[0]) / 2", "third")],
        f"{LOSSES}kl_is_weighted_by_the_clean_answer": [
            ("kl-not-weighted", "was.exp() * (was -", "1 * (was -"),
        ],
        f"{LOSSES}targets_are_the_likeliest_wrong_classes_in_their_order": [
            ("targets-least-likely", "shape[1] - 1), dim=1)", "shape[1] - 1), dim=1, largest=False)"),
        ],
    },
    "advbench/attacks/pgd.py": {
        f"{FELLS}[pgd-linf-False]": [
            ("pgd-flipped", "s.query + alpha", "s.query - alpha"),
            ("pgd-no-projection", "query = region.project(s.query", "query = torch.clone(s.query"),
        ],
        f"{PGD}steps_go_along_the_signs_as_far_as_the_paper_says": [
            ("pgd-short-steps", "self.rel_step * region.e", "0.1 * region.e"),
            ("fgsm-half-step", '"rel_step": 1.0, "random_start"', '"rel_step": 0.5, "random_start"'),
            ("n-fgsm-half-step", '"rel_step": 1.0, "init"', '"rel_step": 0.5, "init"'),
            ("fgsm-rs-step", '"rel_step": 1.25', '"rel_step": 1.0'),
        ],
        f"{PGD}starts_are_the_papers": [
            ("rfgsm-start", "0.5 * region.e * signs", "region.e * signs"),
            ("n-fgsm-start", "4 * uniform(p.key, shape) - 2", "2 * uniform(p.key, shape) - 1"),
        ],
        f"{PGD}momentum_adds_gradients_of_l1_norm_1": [("momentum-forgotten", "self.momentum * velocity + g", "g")],
        f"{PGD}the_registered_momentum_is_1": [("mi-fgsm-momentum", '"momentum": 1.0', '"momentum": 0.0')],
        f"{FELLS}[pgd-l1-False]": [("slide-all-elements", "count = max(", "count = size + 0 * max(")],
        f"{CLOSED}solve_reaches_what_a_band_allows_and_no_more": [
            ("pgd-band-ignored", "region = banded(p.region, self.band)\n", "region = p.region\n"),
        ],
    },
    "advbench/attacks/apgd.py": {
        f"{FELLS}[apgd-ce-linf-False]": [("apgd-flipped", "addcmul(x, region", "addcmul(x, -region")],
        f"{APGD}[linf-40-False]": [
            ("apgd-no-projection", "region.project(torch.lerp", "torch.clone(torch.lerp"),
            ("apgd-no-momentum", "torch.lerp(s.previous, x, 2.0)", "torch.lerp(s.previous, x, 1.0)"),
            ("apgd-start", "noise = noise / noise.abs()", "noise = noise / 2 / noise.abs()"),
            ("apgd-no-halving", "s.step / 2", "s.step"),
            ("apgd-not-from-best", "rows(halve, best, s.query)", "s.query"),
            ("apgd-rises", "rises <= most", "rises > most"),
        ],
        f"{APGD}[linf-100-False]": [("apgd-checkpoints", "int(0.03 * steps)", "int(0.06 * steps)")],
        f"{_in('attacks/test_apgd')}steps_are_halved_by_the_papers_two_rules": [
            ("apgd-stuck", "most) | stuck", "most)"),
            ("apgd-stuck-twice", "halved=torch.where(going, s.halved, halve)", "halved=s.halved"),
        ],
        f"{APGD}[l2-100-False]": [("apgd-first-step", "step=2 * region.eps", "step=region.eps")],
        f"{_in('attacks/test_apgd')}training_gets_the_best_point_not_the_last": [
            ("apgd-last-point", "return s.best  #", "return s.query  #"),
        ],
        f"{STANDARD}[linf]": [
            ("apgd-steps", "steps: Count = 100", "steps: Count = 10"),
            ("apgd-rho", "rho: Share = 0.75", "rho: Share = 0.5"),
        ],
        f"{COUNTED}[apgd-t-linf-more0]": [("malt-order-not-counted", " + ordering", "")],
    },
    "advbench/attacks/aimed.py": {
        f"{TARGETS}random_targets_are_wrong_classes_and_hang_on_seed_and_place_alone[pgd]": [
            ("target-is-the-label", "(drawn >= data.labels)", "(drawn > data.labels)"),
            ("target-without-seed", 'rng.keys(seed, "target"', 'rng.keys(0, "target"'),
        ],
        f"{TARGETS}the_least_likely_class_is_that_of_the_least_logit": [
            ("target-likeliest", "y[:, None], torch.inf).argmin(1)", "y[:, None], -torch.inf).argmax(1)"),
        ],
    },
    "advbench/attacks/apgd_l1.py": {
        f"{FELLS}[apgd-ce-l1-False]": [
            ("apgd-l1-flipped", "signs = g.sign()", "signs = -g.sign()"),
            ("apgd-l1-no-projection", "query=ball.project(", "query=torch.clone("),
            ("apgd-l1-half-ball", "ball = _scaled(p.region, after)", "ball = _scaled(p.region, after / 2)"),
            ("apgd-l1-all-elements", "size_of >= least", "size_of >= 0"),
        ],
        f"{APGD}[l1-40-False]": [
            ("apgd-l1-length", "s.step / 1.5", "s.step / 1.1"),
            ("apgd-l1-sparser", "count < 0.95", "count > 0.95"),
        ],
        f"{APGD}[l1-40-True]": [
            ("apgd-l1-next-ball", "after < factor, best,", "after < factor, s.query,"),
            ("apgd-l1-larger-balls", "s.best_value) | begin", "s.best_value)"),
        ],
    },
    "advbench/attacks/fab.py": {
        f"{NEAREST}[fab-linf-False]": [
            ("fab-flipped", "[-f, rise]", "[f, rise]"),
            ("fab-not-moved-back", "x + self.beta * (s.query - x)", "s.query"),
        ],
        f"{FAB}a_step_mixes_those_from_the_query_and_from_the_image": [
            ("fab-alpha", "(one / (one", "(other / (one"),
            ("fab-no-eta", "both.add(d, alpha=self.eta)", "both.add(d, alpha=1)"),
        ],
        f"{FAB}each_step_queries_a_gradient_and_logits": [("fab-half-the-steps", "2 * self.steps", "self.steps")],
        f"{STANDARD}[linf]": [("fab-beta", "beta: Share = 0.9", "beta: Share = 0.5")],
        f"{SEVERAL}[linf-fab-t]": [("fab-one-target", "y, self.n_targets)", "y, 1)")],
        f"{FIT}[fab-t-linf]": [("fab-counts-a-query-more", "self.updates(classes)", "super().queries(classes)")],
    },
    "advbench/engine/hyperplane.py": {
        f"{SEVERAL}[linf-fab]": [("boundary-not-by-distance", "f.abs() / (dual + 1e-12)", "f.abs()")],
        f"{HALFSPACE}is_the_shortest_step_onto_the_hyperplane": [
            ("halfspace-sign", "w.flatten(1) * rise.sign()", "w.flatten(1) * -rise.sign()"),
            ("halfspace-l2-as-linf", "mul_(slope)", "mul_(1)"),
            ("halfspace-l1-order", "descending=True", "descending=False"),
        ],
    },
    "advbench/attacks/square.py": {
        f"{FELLS}[square-linf-False]": [
            ("square-flipped", "better = a.value > s.best_value", "better = a.value < s.best_value"),
            ("square-half-ball", "torch.lerp(best, border,", "torch.lerp(best, (border + p.region.x) / 2,"),
        ],
        f"{SQUARE}[linf]": [
            ("square-stripes", "(channels, 1, width)", "(channels, 1, 1)"),
            ("square-never-smaller", "p_init / 2 **", "p_init / 1 **"),
        ],
        f"{SQUARE}[l2]": [
            ("square-l2-half-ball", "delta = region.e * _unit", "delta = 0.5 * region.e * _unit"),
        ],
        f"{_in('attacks/test_square')}an_item_is_given_up_that_is_too_far_from_failure": [
            ("square-stops-all", "value < self.early_stop", "value < -self.early_stop"),
            ("square-stops-late", "log2(queries / at)", "2 * log2(queries / at)"),
        ],
        f"{_in('attacks/test_square')}what_is_left_of_the_norm_is_shared_among_the_channels": [
            ("square-l2-mass", "(region.e**2 - whole**2)", "(region.e - whole)"),
        ],
        f"{SQUARE}[l1]": [("square-l1-mass", "both * channels", "both")],
        f"{STANDARD}[linf]": [
            ("square-p-init", "p_init: float = 0.8", "p_init: float = 0.3"),
            ("square-queries", "n_queries: Count = 5000", "n_queries: Count = 1000"),
        ],
    },
    "advbench/attacks/ddn.py": {
        f"{NEAREST}[ddn-l2-False]": [
            ("ddn-flipped", "s.delta + alpha", "s.delta - alpha"),
            ("ddn-direction-of-signs", "p.region.steepest(_nonzero", "torch.sign(_nonzero"),
            ("ddn-shrinks-and-grows", "1 - self.gamma, 1 + self.gamma", "1 + self.gamma, 1 - self.gamma"),
        ],
        f"{STEPS}ddn_leaves_a_point_without_gradient_in_a_new_direction_each_time": [
            ("ddn-same-noise", "rng.fold(p.key, s.i)", "p.key"),
        ],
    },
    "advbench/attacks/schedules.py": {
        f"{STEPS}ddn_turns_along_the_gradient_and_scales_to_its_norm": [
            ("cosine-is-flat", "torch.cos(torch.pi * i", "torch.cos(0 * i"),
        ],
    },
    "advbench/attacks/fmn.py": {
        f"{NEAREST}[fmn-linf-False]": [
            ("fmn-flipped", "s.query + (alpha", "s.query - (alpha"),
            ("fmn-no-projection", ".project(stepped)", ".project(stepped) * 0 + stepped"),
            ("fmn-half-ball", "around(region.norm, x, size)", "around(region.norm, x, size / 2)"),
            ("fmn-never-shrinks", "s.size * (1 - gamma)", "s.size * (1 + gamma)"),
        ],
        f"{STEPS}fmn_shrinks_grows_and_estimates_its_ball": [("fmn-estimate", "region.dual(a", "region.size(a")],
    },
    "advbench/attacks/cw.py": {
        f"{NEAREST}[cw-l2-l2-False]": [
            ("cw-l2-flipped", "- active.view", "+ active.view"),
            ("cw-l2-no-distance", "g = 2 * (s.query", "g = 0 * (s.query"),
        ],
        f"{STEPS}cw_is_adam_on_distance_and_margin": [("cw-l2-kappa", "a.value < self.kappa", "a.value < 0")],
        f"{STEPS}cw_searches_c_between_its_bounds": [
            ("cw-l2-c", "10 * s.c", "s.c"),
            ("cw-l2-goes-on", "w = rows(over, self._first(p), w)", "w = w + 0"),
        ],
    },
    "advbench/attacks/deepfool.py": {
        f"{NEAREST}[deepfool-linf-False]": [
            ("deepfool-flipped", "s.r + length", "s.r - length"),
            ("deepfool-length", "p.region.dual(w)", "p.region.size(w)"),
        ],
        f"{STEPS}deepfool_adds_up_the_steps_and_overshoots_their_sum": [
            ("deepfool-overshoot", "(1 + self.overshoot) * r", "r"),
        ],
    },
    "advbench/attacks/odi.py": {
        f"{MARGINS}the_steps_of_odi_margin_follow_its_cosine": [
            ("odi-whole-cosine", "self.steps + 1, 1.0", "self.steps, 1.0"),
            ("odi-last-steps-too-large", "0.1 if self.steps <= 10 else 0.001", "0.1"),
        ],
        f"{MARGINS}odi_margin_climbs_random_outputs_first_and_then_the_margin": [
            (
                "odi-one-sided-weights",
                "2 * rng.uniform(rng.fold(p.key, 3), (read.shape[1],)) - 1",
                "rng.uniform(rng.fold(p.key, 3), (read.shape[1],))",
            ),
            ("odi-in-the-first-restart", "torch.where(p.first, 0, self.odi_steps)", "0 * p.y + self.odi_steps"),
        ],
    },
    "advbench/attacks/pma.py": {
        f"{MARGINS}pma_climbs_one_probability_and_then_their_margin": [
            ("pma-climbs-own-class", "p.restart % 2 == 0", "p.restart % 2 == 1"),
            ("pma-never-both", "2 * p.i < self.steps", "p.i < self.steps"),
        ],
        f"{MARGINS}the_steps_of_pma_fall_twice_from_two_eps_to_nothing": [
            ("pma-one-fall", "torch.where(s.i <= half, s.i, s.i - half)", "s.i / 2"),
        ],
    },
    "advbench/attacks/malt.py": {
        f"{MARGINS}the_order_of_malt_is_that_of_the_exact_distances_of_a_linear_model": [
            ("malt-by-logits", "-a.value / region.dual(a.gradient).clamp_min(_TINY)", "-a.value"),
        ],
    },
    "advbench/attacks/sigma_zero.py": {
        f"{STEPS}sigma_zero_is_adam_on_a_smooth_count_and_the_margin": [
            ("sigma-zero-no-threshold", " tau.view(-1, 1, 1, 1), 0, delta)", " tau.view(-1, 1, 1, 1), delta, delta)"),
            ("sigma-zero-tau-turned", "torch.where(a.wrong, 1, -1)", "torch.where(a.wrong, -1, 1)"),
            ("sigma-zero-no-count", "g = count - a.gradient", "g = 0 * count - a.gradient"),
        ],
    },
    "advbench/attacks/hopskipjump.py": {
        f"{JUMPS}every_query_is_that_of_the_algorithm[l2]": [
            ("jump-no-baseline", "s.weighted - mean * s.sum", "s.weighted"),
            ("jump-never-halves", "s.length / 2", "s.length"),
            ("jump-same-samples", "s.round.float().sqrt()).long()", "s.round.float() ** 0).long()"),
        ],
        f"{JUMPS}every_query_is_that_of_the_algorithm[linf]": [
            ("jump-wrong-theta", "else -2.0", "else -1.5"),
        ],
        f"{FIT}[hopskipjump-l2]": [("jump-counts-a-query-more", "self.updates(classes)", "super().queries(classes)")],
    },
    "advbench/attacks/rays.py": {
        f"{NEAREST}[rays-linf-False]": [("rays-no-elements", "/ 2**level) for", "/ 2**level) * 2 for")],
        f"{RAYS}every_query_is_the_papers[shape0-0.001]": [
            ("rays-reads-values", "high = torch.where(a.wrong,", "high = torch.where(a.value > 0,"),
            ("rays-flips-the-others", "torch.where(inside, -signs, signs)", "torch.where(inside, signs, -signs)"),
            ("rays-halves-first", "for level in range(levels)", "for level in range(1, levels)"),
            ("rays-tolerance", "/ math.sqrt(numel)", "* 1"),
            ("rays-from-1-again", "reach = radius.clamp_max(1)", "reach = radius.clamp(1, 1)"),
            ("rays-below-the-last-low", "torch.where(first, 0, s.low)", "torch.where(first, 0, 0)"),
        ],
        f"{RAYS}every_query_is_the_papers[shape1-0.01]": [
            ("rays-levels-anew", "s.block + 1, elements)", "s.block + 1, 0)"),
            ("rays-keeps-the-last", "signs = rows(nearer,", "signs = rows(ended,"),
        ],
        f"{RAYS}an_item_ends_after_a_round_of_elements_without_success": [
            ("rays-gives-up-in-blocks", "(ended & (s.block >= elements))", "ended"),
            ("rays-gives-up-in-sum", "torch.where(nearer, 0, s.failures", "torch.where(nearer, s.failures, s.failures"),
        ],
        f"{RAYS}queries_are_counted_and_end_where_no_flip_helps": [
            ("rays-one-more-query", "s.i >= self.n_queries", "s.i > self.n_queries"),
            ("rays-never-ends", "s.failures >= s.query[0].numel()", "s.failures < 0"),
        ],
        f"{RAYS}restarts_begin_with_signs_of_their_own": [("rays-restarts-alike", "rows(p.first,", "rows(p.y == p.y,")],
        f"{SETS}the_registered_attacks_have_the_papers_budgets": [
            ("rays-queries", "n_queries: int = 10000", "n_queries: int = 1000"),
        ],
    },
    "advbench/attacks/feature_pgd.py": {
        f"{FELLS}[feature-pgd-linf-False]": [("feature-pgd-flipped", "return -(read", "return (read")],
        f"{PGD}features_are_pulled_to_the_centres_of_the_3_likeliest_wrong_classes": [
            ("feature-pgd-targets", "n_targets: Size = 3", "n_targets: Size = 1"),
        ],
        f"{PROMISES}expectation_over_transformation_averages_features": [
            ("features-are-logits", "return logits.float(), features.float()", "return logits.float(), logits.float()"),
        ],
        f"{_in('attacks/test_feature_pgd')}a_class_is_centred_at_the_mean_features_of_its_clean_images": [
            ("centres-are-sums", "member.sum(0).clamp_min(1)", "member.sum(0).clamp(1, 1)"),
        ],
    },
    "advbench/attacks/multi_task.py": {
        f"{_in('attacks/test_multi_task')}the_weights_are_the_papers": [
            ("multi-task-relative", "1 / first.clamp_min", "first.clamp_min"),
            ("multi-task-rate", "rate = now / first", "rate = now * first"),
            ("multi-task-turns", "(i % len(tasks))", "(0 * i)"),
        ],
        f"{_in('attacks/test_multi_task')}a_step_goes_along_the_gradient_of_the_weighted_losses": [
            ("multi-task-main-alone", "a.gradient).sum(1)", "a.gradient)[:, 0]"),
        ],
        f"{COUNTED}[multi-task-linf-more6]": [("views-not-counted", "queries * (1 + self.views())", "queries")],
    },
    "advbench/attacks/transfer.py": {
        f"{PROMISES}transfer_is_judged_by_the_model_and_counts_the_passes_of_both": [
            ("transfer-judged-by-source", "self.net(query)", "self.search(query)"),
            ("transfer-gradients-of-net", "__init__(net, source,", "__init__(net, net,"),
        ],
        f"{COUNTED}[transfer-linf-more5]": [("judging-not-counted", "forwards + self.queries(classes)", "forwards")],
    },
    "advbench/attacks/autoattack.py": {
        f"{STANDARD}[linf]": [("autoattack-targets", "n_targets=5 if l1 else 9", "n_targets=5 if l1 else 3")],
        f"{STANDARD}[l1]": [("autoattack-l1-restarts", "restarts=5 if l1 else 1", "restarts=1")],
        f"{SETS}plus_and_rand_are_the_papers_sets[linf]": [
            ("autoattack-plus-targets", "n_targets=9, larger", "n_targets=3, larger"),
            ("autoattack-rand-passes", 'loss="dlr", eot=20', 'loss="dlr", eot=2'),
        ],
    },
    "advbench/attacks/peers.py": {
        f"{EXTERNAL}objects_are_bound_anew": [
            ("eps-as-made", "part.eps = task.eps", "part.eps = part.eps"),
            ("step-as-made", "ratio * task.eps", "step"),
        ],
    },
    "advbench/engine/attack.py": {
        f"{FELLS}[fgsm-linf-False]": [("last-look-forgotten", "return s.i > self.steps", "return s.i >= self.steps")],
        f"{CLOSED}solve_reaches_the_attainable_gain[fgsm-linf-0.9999]": [
            ("solve-flipped", "grad(value.sum(), query)", "grad(-value.sum(), query)"),
        ],
        f"{FIT}[pgd-linf]": [
            ("budget-a-step-more", "return self.with_count(fitting)", "return self.with_count(fitting + 1)"),
        ],
    },
    "advbench/evaluator/attack_budget.py": {
        f"{BUDGET}a_set_shares_it_in_proportion_to_the_usual_passes": [
            ("budget-in-equal-shares", "budget * own // sum(usual)", "budget // len(usual)"),
        ],
        f"{BUDGET}one_that_is_too_small_names_the_least": [("budget-least-rounded-down", "-(-one *", "(one *")],
    },
    "advbench/engine/search.py": {
        f"{PROMISES}a_hit_of_the_search_copy_alone_does_not_count": [
            ("hit-not-verified", "wrong(logits, p.y) & p.region", "p.region"),
        ],
        f"{SEARCH}a_point_outside_of_the_ball_is_no_candidate": [
            ("ball-not-checked", "hit & inside, slots", "hit, slots"),
        ],
        f"{SEARCH}the_point_after_the_last_update_is_judged_and_none_after_it": [
            ("hit-after-the-end", "answer.wrong & going & ~slots", "answer.wrong & ~slots"),
        ],
        f"{ATTEMPTS}the_query_of_the_largest_margin_in_the_ball": [
            ("attempt-outside", "better = better & inside", "better = better & going"),
            ("attempt-after-the-end", "going & (reached >", "(reached >"),
            ("attempt-last", "(reached > slots.attempt_margin)", "(reached > -9)"),
        ],
        f"{SEARCH}a_refused_item_continues_and_may_still_fall": [
            ("refused-given-up", "(again > 0)).nonzero", "(again > 9)).nonzero"),
            ("refused-again", "hit > (reached.clamp_min(torch.finfo(reached.dtype).min) <= to_beat)", "hit"),
        ],
        f"{SEARCH}a_refused_item_continues_after_a_restart": [
            (
                "refused-not-kept",
                'for fields in saved["refused"]',
                'for fields in saved["refused"][:0]',
            ),
        ],
        f"{REFUSED}a_copy_wrong_at_the_image_itself_loses_none": [
            ("refused-not-resumed", "self._idle = True  # idle slots have work again", "pass"),
        ],
        f"{REFUSED}no_image_is_lost_to_a_copy_that_is_wrong_too_soon[fab-linf]": [
            ("refused-without-handicap", "handicap = slots.margin_to_beat.clamp_min(0)", "handicap = None"),
            ("refused-size-unknown", "np.minimum.at(v.refused.numpy(), rows[~good], size[~good])", "pass"),
        ],
        f"{SEARCH}a_hit_spares_the_sample_all_its_other_items": [
            ("sibling-goes-on", "(self.item >= 0) & self.verdicts", "(self.item < 0) & self.verdicts"),
            ("sibling-begins", "places = places[~fell[self.rows_of(places)]]", "pass"),
        ],
        f"{ABSTAIN}candidates_are_tried_rounded_to_8_bit": [
            ("not-rounded", "if self.oracle.rejects:", "if False:"),
        ],
        f"{SEARCH}a_slot_forgets_what_its_last_item_found": [
            ("limit-stays-in-slot", "self.slots.best_size[at] = torch.inf", "self.slots.best_size[at] += 0"),
        ],
        f"{SEARCH}the_nearest_point_of_all_items_and_queries_is_kept": [
            ("limit-not-lowered", "torch.where(hit, size, best)", "best"),
            ("last-point-kept", "good & (size < before) & (size == distance[rows])", "good"),
        ],
        f"{SEARCH}the_width_follows_the_items": [
            ("never-narrower", "width > narrow_to * self.width", "width > 0"),
        ],
        f"{SEARCH}an_exact_search_becomes_narrower_where_a_turn_gives_the_same_bits": [
            ("width-not-tried", "if self.exact and not self._alike(at):", "if False:"),
            ("trial-counted", "self.oracle.forwards, self.oracle.backwards = before", "pass"),
        ],
        f"{SEARCH}each_item_has_its_own_random_numbers": [
            ("search-without-seed", "rng.keys(self.seed", "rng.keys(0"),
            ("search-restarts-alike", "index, target, restart)", "index, target)"),
        ],
        f"{CLOSED}kl_is_that_of_the_clean_answer": [
            ("one-restart", "self.targets.shape[1] * attack.restarts", "self.targets.shape[1]")
        ],
        f"{SEVERAL}[linf-apgd-t]": [("one-target", "self.total = n * self.targets.shape[1]", "self.total = n")],
    },
    "advbench/engine/oracle.py": {
        f"{PROMISES}a_hit_of_the_search_copy_alone_does_not_count": [
            ("verified-by-the-copy", "self.net(filled)", "self.search(filled)"),
        ],
        f"{PROMISES}expectation_over_transformation_averages_passes": [
            ("eot-one-pass", "range(attack.eot - 1)", "range(0)"),
        ],
        f"{PROMISES}a_random_model_is_judged_by_the_mean_of_20_passes": [
            ("random-judged-once", "RANDOM_PASSES if self.random else 1", "1"),
        ],
        f"{PROMISES}straight_through_attacks_through_a_step_function": [
            ("straight-through-off", "if attack.straight_through else", "if False else"),
        ],
        f"{PROMISES}gradients_that_are_not_finite_are_no_direction": [
            ("nan-gradient", "grad.nan_to_num(0.0, 0.0, 0.0)", "grad"),
        ],
    },
    "advbench/engine/rejection.py": {
        f"{ABSTAIN}a_hit_is_an_answer_that_is_neither_the_label_nor_the_rejection": [
            (
                "rejection-ignored",
                "torch.maximum(logits.gather(1, y[:, None]), rejection)",
                "logits.gather(1, y[:, None])",
            ),
        ],
        f"{ABSTAIN}a_rejection_that_is_no_number_is_a_wrong_answer[-inf]": [
            ("rejection-infinite", " + 0 * rejection", ""),
        ],
        f"{ABSTAIN}whole_8_bit_steps_stay_in_the_ball[linf]": [
            ("steps-out-of-the-ball", "nearest, towards)", "nearest, nearest)"),
        ],
    },
    "advbench/models/untouched.py": {
        f"{PROMISES}model_and_global_randomness_are_left_as_they_were[apgd-ce-linf]": [
            ("train-mode", "net.eval()", "net.train()"),
        ],
    },
    "advbench/engine/whole_batch.py": {
        f"{PLUGINS}points_outside_of_the_ball_count_for_nothing": [
            ("outside-counts", "wrong(logits, y) & inside", "wrong(logits, y)"),
        ],
        f"{PLUGINS}what_a_function_does_to_the_model_is_done_to_a_copy": [
            ("no-copy", "net = copied(oracle.net)", "net = oracle.net"),
        ],
        f"{EXTERNAL}passes_are_those_that_the_model_made": [
            ("backwards-by-batch", "passes.backwards += len(grad)", "passes.backwards += 1"),
        ],
        f"{EXTERNAL}points_beside_the_ball_by_rounding_count": [
            ("rounding-is-outside", "<= ROUNDING", "< 0"),
        ],
    },
    "advbench/registry.py": {
        f"{PLUGINS}a_method_by_entry_and_by_class": [
            ("entries-outside-ignored", "table[name] if known else", "table[name] if False else"),
        ],
    },
    "advbench/rng.py": {
        f"{NUMBERS}every_part_of_a_key_counts": [
            ("key-without-index", "in (index, *more):", "in (0 * index, *more):"),
            ("key-without-target", "in (index, *more):", "in (index, *more[1:]):"),
            ("key-without-seed", "torch.full_like(index, seed)", "torch.full_like(index, 0)"),
            ("key-without-attack", "crc32(name.encode())", "0"),
        ],
        f"{NUMBERS}an_iteration_draws_on_where_the_one_before_ended": [
            ("iterations-alike", "at[:, None] * count +", "0 * at[:, None] +"),
        ],
    },
    "advbench/attacks/corruptions.py": {
        f"{SETS}members_are_the_registered_attacks_of_their_names": [
            ("corruptions-14", "for name in COMMON)", "for name in COMMON[:14])"),
        ],
    },
    "advbench/evaluator/corruptions.py": {
        f"{CORRUPTIONS}the_curve_is_the_worst_case_and_the_table_each_ones_error": [
            ("corruptions-last-severity", "sooner = fell & (severity < first)", "sooner = fell"),
            ("corruptions-one-severity", "attack.name, severity,", "attack.name, 1,"),
            ("corruptions-right-images-alone", "float(fell.mean())", "float((fell & runner.correct).mean())"),
        ],
    },
    "advbench/evaluator/eps_grid.py": {
        f"{WALK}both_walks_find_the_smallest_radius": [
            ("walk-point-skipped", "(grid.fell > point)", "(grid.fell > point + 1)"),
            ("walk-one-descent", "samples[going & (", "samples[going & False & ("),
            ("walk-wrong-answers-stand", "np.where(correct, self.end, 0)", "np.where(correct, self.end, self.end)"),
        ],
        f"{WALK}a_near_point_found_in_a_large_ball_counts_for_the_smaller_ones": [
            ("walk-size-ignored", "np.minimum(points, reached)", "points"),
        ],
    },
    "advbench/attacks/quick.py": {
        f"{QUICK}the_set_is_cheap_gradients_and_square_with_early_stopping": [
            ("quick-likeliest-classes", 'targets="malt"', 'targets="likeliest"'),
            ("quick-blind-sentinel", "early_stop=0.1", "early_stop=10"),
        ],
    },
    "advbench/evaluator/plan.py": {
        f"{QUICK}a_set_that_searches_for_the_nearest_examples_goes_on_too[near]": [
            ("nearest-escalates-nearest", "minimum_norm for one in both", "minimum_norm for one in attacks"),
        ],
        f"{QUICK}functions_may_stand_before_and_after_an_escalation": [
            ("function-after-a-fast-curve", "for one in both if isinstance", "for one in attacks if isinstance"),
        ],
        f"{QUICK}the_exact_curve_plans_the_escalation_at_each_eps": [
            ("escalation-once", "counts + [once] *", "counts + [1] *"),
        ],
    },
    "advbench/compare/remedy.py": {
        f"{QUICK}a_gate_tells_the_set_from_what_it_goes_on_to": [
            ("a-sets-own-settings", "without |= {", "{"),
        ],
    },
    "advbench/evaluator/escalation.py": {
        f"{QUICK}any_flag_that_doubts_and_late_hits_escalate": [
            ("quick-notes-escalate", "if flag.decides()", "if flag.detail"),
            ("quick-late-hits-ignored", "k > bound * n", "k > 2 * bound * n"),
            ("quick-first-attack-too", "(enumerate(run.every))[1:]", "(enumerate(run.every))[2:]"),
            ("quick-goes-on-twice", "run.escalated or", "False or"),
        ],
    },
    "advbench/record/fates.py": {
        f"{RECORD}numbers_are_counted_from_the_fates": [
            ("curve-rises", "| (self.fell > point)", "| (self.fell != point)"),
        ],
    },
    "advbench/evaluator/fp32_recheck.py": {
        f"{SECOND}every_norm_and_number_of_classes_has_a_recheck": [
            ("second-look-targets", "TARGETS = 3", "TARGETS = 1"),
            ("second-look-no-gradients", "through = any(attack.straight_through", "through = any(False"),
        ],
        f"{SECOND}near_is_within_a_multiple_of_the_copys_error": [
            ("error-of-most", "error.nan_to_num(0).max()", "error.nan_to_num(0).median()"),
            (
                "near-for-all-alike",
                "logits.abs().amax(1)).double()",
                "logits.abs().amax() + 0 * logits[:, 0]).double()",
            ),
        ],
        f"{SECOND}who_is_misled": [
            ("misled-without-gradient", "~alike & other.any(1)", "~alike"),
            ("misled-if-opposite", ">= ALIKE", ">= -ALIKE"),
        ],
    },
    "advbench/evaluator/rounding.py": {
        f"{ROUNDING}the_nearest_value_inside_the_ball": [
            ("rounded-too-low", "low + (pixels(low) < region.low).float()", "low"),
            ("rounded-too-high", "high - (pixels(high) > region.high).float()", "high"),
        ],
        f"{ROUNDING}other_roundings_are_tried_where_the_nearest_does_not_do": [
            ("rounded-once", "torch.where(above, exact.ceil(), exact.floor())", "exact.round()"),
        ],
    },
    "advbench/evaluator/outcome.py": {
        f"{QUICK}a_set_that_searches_for_the_nearest_examples_goes_on_too": [
            ("nearest-without-escalation", "runner.nearest(run.every,", "runner.nearest(run.attacks,"),
        ],
    },
    "advbench/evaluator/parallel/worker.py": {
        f"{SECOND}a_worker_takes_the_copys_error_on_all_images": [
            ("error-of-a-share", "journal.copy_error = job.copy_error", "journal.copy_error = None"),
        ],
    },
    "advbench/evaluator/runner.py": {
        f"{_in('evaluator/test_certify')}attacks_that_proofs_make_needless_are_skipped": [
            ("skips-all", "open_ = points > self.proved[rows]", "open_ = points > len(at)"),
        ],
        f"{_in('evaluator/test_memory')}with_fewer_slots_the_journal_tells_the_same_searches": [
            ("strikes-of-halved-slots", "self.slots // items[attack]", "self.oracle.slots // items[attack]"),
        ],
        f"{QUICK}noise_does_not_change_which_searches_the_journal_tells": [
            ("doubt-is-not-kept", 'partial(self.journal.once, work))["misled', 'work)["misled'),
        ],
        f"{QUICK}a_masked_net_meets_the_strong_attacks_too": [
            ("quick-forgets-the-strong-attacks", "for number in range(checks.stop, count)", "for number in range(0)"),
        ],
        f"{SECOND}images_near_failure_in_bf16_meet_the_same_attack_in_fp32[fast]": [
            ("near-let-go", "number, samples=near)", "number, samples=near[:0])"),
            ("all-are-near", "> -near_margin[rows]", "> -1e9"),
        ],
        f"{SECOND}what_bf16_hides_falls_in_fp32": [
            ("second-look-in-bf16", "in_fp32 = again or attack in checks", "in_fp32 = again"),
            ("misled-let-go", "far[self._misled(plan.recheck[0], far)]", "far[:0]"),
        ],
        f"{SECOND}images_far_from_failure_are_not_rechecked_and_none_is_lost": [
            ("all-in-doubt", "fresh = np.setdiff1d(in_doubt, rechecked)", "fresh = grid.open()"),
        ],
        f"{EXTERNAL}a_note_says_which_do_not_repeat": [
            ("repetition-agrees", 'again["fell"].numpy() != fell', "fell != fell"),
        ],
        f"{EVALUATE}the_nearest_point_over_all_attacks_counts": [
            ("nearest-is-last", "nearer = found < distance[rows]", "nearer = found < np.inf"),
        ],
    },
    "advbench/engine/search_copy/copy.py": {
        f"{COPY}a_recording_that_rounds_by_a_rows_place_is_not_used": [
            ("place-tells", "ours.roll(1, 0)):", "ours.roll(1, 0)) and False:"),
        ],
        f"{COPY}a_fold_that_changes_logits_is_undone": [
            (
                "fold-unchecked",
                "not difference <= TOLERANCE:\n        return plain, [*",
                "False:\n        return plain, [*",
            ),
        ],
        f"{COPY}a_convolution_seen_by_others_is_not_folded": [
            ("fold-seen-by-others", "len(source.users) == 1", "len(source.users) >= 1"),
        ],
        f"{COPY}logits_and_input_gradients_agree_and_the_original_is_untouched": [
            ("copy-in-train-mode", "copy.deepcopy(net).eval()", "copy.deepcopy(net).train()"),
        ],
    },
    "advbench/engine/search_copy/winograd.py": {
        f"{_in('engine/search_copy/test_winograd')}it_equals_the_plain_convolution": [
            ("winograd-gradient", "x[some, 1:, :2, 1:, :2] +=", "x[some, 1:, :2, 1:, :2] -="),
        ],
    },
}
