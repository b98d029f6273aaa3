"""The result of a range test: its rows, and the rates read from them."""

from __future__ import annotations

import contextlib
import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import optax

from optax_clr import _drawing, _presentation, _reading
from optax_clr._arguments import function, whole_number
from optax_clr._curve import curve_of
from optax_clr._modes import undisturbed
from optax_clr._peak_ratio import peak_ratio
from optax_clr._presentation import Rule
from optax_clr._tracing import any_traced, is_traced
from optax_clr._words import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Errors of results that cannot be shown, because their fields are not arrays with values (as after
# jax.tree.map or jax.eval_shape), have no rows, or were donated.
_NOT_SHOWN = (TypeError, ValueError, ArithmeticError, RuntimeError)


class RangeTestResult(NamedTuple):
    """One row for each value tried; ``n`` is the number of values.

    XLA needs static shapes, so a test that diverges early still has ``n`` rows: those from
    ``num_valid`` on are NaN, padding and not data. Under ``jax.vmap`` all of these shapes get
    leading axes; every method then reads all the curves together. The arrays can be saved with
    ``numpy.savez(file, **result._asdict())``, and loaded without pickle if ``metrics`` is empty or
    a single array.

    Attributes:
      learning_rates: ``f32[n]`` value used at each row, in the order tried.
      losses: ``f32[n]`` raw batch loss, measured before that row's update.
      smoothed_losses: ``f32[n]`` bias-corrected moving average of ``losses``.
      num_valid: ``i32[]`` rows recorded before divergence; ``n`` if there was none. The row that
        revealed the divergence is the last of them, if its loss is finite. A single row whose loss
        is not finite counts, as a gap.
      metrics: auxiliary output of the loss at each row, as floats, a pytree of ``[n, ...]``; ``()``
        without ``has_aux``. Integers above 16,777,216 are rounded to float32.
      held_out_losses: ``f32[n]`` loss of the held-out batch after each row, which the methods read
        instead of ``losses``; ``()`` without one.
      equivalent_steps: ``f32[n]`` sum of the rates of all updates up to a row, divided by the rate
        of that row; ``()`` means one update per row.
      ended_by: ``i32[]`` what ended the test: 0 the last value, 1 divergence, 2 the end of the
        data, 3 an interrupt or an exception in the data loader; ``()`` if it is not known.
      batch_size: ``i32[]`` examples in a batch, the length of the leading axis that its arrays
        share (of time-major batches, the length of the sequences); 0 if one of them is a scalar,
        ``()`` if they do not share one.
      optimizer_factor: ``f32[]`` ratio of the rates that are read to those of Adam or momentum
        with the same curve; ``()`` means 1. See [`suggest`][].

    Examples:
      >>> inputs = jax.random.normal(jax.random.key(0), (300, 32))
      >>> def loss_fn(weight, batch):
      ...     return jnp.mean((weight * batch - 3 * batch - 1) ** 2)
      >>> result = optax_clr.lr_range_test(loss_fn, jnp.float32(0.0), optax.sgd, inputs)
      >>> result.losses.shape, bool(result.num_valid < 300)  # it diverged
      ((300,), True)
      >>> 0.1 < result.one_cycle_peak() < 0.4
      True
    """

    learning_rates: jax.Array
    losses: jax.Array
    smoothed_losses: jax.Array
    num_valid: jax.Array
    metrics: Any = ()
    held_out_losses: Any = ()
    equivalent_steps: Any = ()
    ended_by: Any = ()
    batch_size: Any = ()
    optimizer_factor: Any = ()

    def __repr__(self) -> str:
        """Return the summary, or the fields if they are not arrays with values, as in jit."""
        try:
            return self.summary()
        except _NOT_SHOWN:
            fields = (f"{name}={value!r}" for name, value in self._asdict().items())
            return f"RangeTestResult({', '.join(fields)})"

    def _repr_html_(self) -> str:
        """Return the summary for a notebook, with the curve if Matplotlib is installed."""
        picture = ""
        with contextlib.suppress(*_NOT_SHOWN):
            picture = _picture(self)
        return f"<pre>{html.escape(repr(self), quote=False)}</pre>{picture}"

    @undisturbed()
    def suggest(self) -> float | jax.Array:
        r"""Return a constant rate to train with.

        $$f \sqrt{N \eta_1 \eta_2} / 18$$

        The valley of the curve reaches from the rate $\eta_1$, at which the loss has made
        half of its fall, to $\eta_2$, at which it has lost half of that fall again. $N$ is
        ``equivalent_steps`` at $\eta_1$: the longer the test, the lower $\eta_1$ is.
        Losses are averaged with a Gaussian whose standard deviation is 0.3 decades of the rate, on
        a scale that is logarithmic above their noise. With leading axes all the curves are read
        together.

        The factor $f$ is ``optimizer_factor``: 2 for optimizers that do not average gradients
        (plain SGD, Adagrad), 1/4 for those whose updates have the same size whatever the size of
        the gradients (Lion, Muon, LAMB), 1/2 if both hold (sign SGD), else 1. It is detected from
        Optax's states and functions; if that fails, set it:
        ``result._replace(optimizer_factor=0.25).suggest()``.

        No method returns a rate above $0.7 \, \eta_2$, if the test went that far.

        On 22 small held-out tasks the validation loss after training was 5% above that with the
        best rate in the median, and 14% in the geometric mean.

        Returns:
          The rate, a float; inside ``jax.jit`` or ``jax.vmap`` ``f32[]``, and NaN if the curve
          cannot be read.

        Raises:
          RangeTestError: if the curve cannot be read; the message says what to change. Inside
            ``jit`` and ``vmap`` the answer is NaN instead.
          RangeTestWarning: a warning, outside ``jit`` and ``vmap``, if the reading is doubtful, as
            when an end of the sweep cuts the valley or noise blurs it; the message says what to
            change.

        Examples:
          >>> rates = jnp.geomspace(1e-3, 10.0, 100)
          >>> losses = (jnp.log10(rates) - jnp.log10(0.5)) ** 2  # lowest at 0.5
          >>> result = RangeTestResult(rates, losses, losses, jnp.int32(100))
          >>> print(f"{result.suggest():.2f}")
          0.10
        """
        return _number(_reading.suggest(_valley(self)))

    @undisturbed()
    def one_cycle_peak(self) -> float | jax.Array:
        r"""Return the peak of a one-cycle run, which may be higher than a constant rate.

        $$2.64 \, \eta$$

        with $\eta$ from [`suggest`][]; [`peak_for`][] gives the same for one cycle of 1,000
        steps.

        Returns:
          The rate, a float; inside ``jax.jit`` or ``jax.vmap`` ``f32[]``, and NaN if the curve
          cannot be read.

        Raises:
          RangeTestError: if the curve cannot be read; the message says what to change. Inside
            ``jit`` and ``vmap`` the answer is NaN instead.
          RangeTestWarning: a warning, as for [`suggest`][].

        Examples:
          >>> rates = jnp.geomspace(1e-3, 10.0, 100)
          >>> losses = (jnp.log10(rates) - jnp.log10(0.5)) ** 2  # lowest at 0.5
          >>> result = RangeTestResult(rates, losses, losses, jnp.int32(100))
          >>> print(f"{result.one_cycle_peak():.2f}")
          0.25
        """
        return _number(_reading.one_cycle_peak(_valley(self)))

    @undisturbed()
    def peak_for(self, shape: optax.Schedule, num_steps: int) -> float | jax.Array:
        r"""Return the peak of any schedule: the constant rate times a ratio given by its shape.

        $$
        \eta \sqrt{\frac{T (1 + H_{T-1})}{S_1 B}}, \quad
        B = \frac{Q_1}{S_1} + \sum_{k=1}^{T-1} \frac{s_k}{S_{k+1}} \frac{Q_k}{S_k}
        $$

        with $\eta$ from [`suggest`][], $s_1 \dots s_T$ the schedule divided by its highest
        value, $S_k$ and $Q_k$ the sums of $s_t$ and of $s_t^2$ from step
        $k$ on, and $H$ the harmonic numbers. The root is the ratio of two rates: the peak
        that minimises a bound from convex optimisation on the loss of the last params under this
        schedule, and the constant rate that minimises the same bound. Nothing in it is fitted. A
        schedule may end in steps so small that they barely move the params, as a decay to a
        millionth of the peak does. With at least 64 steps, it is then treated as one that stops
        before them, after step $T'$, with $2 S_{T'+1}$ added to $B$ for what they can still change,
        if that allows a peak at least a tenth higher.

        Args:
          shape: any schedule, ``step -> value``, of values that are at least 0; its height does not
            matter.
          num_steps: positive integer, the length of the training in optimizer steps. Above 32,768
            the schedule is sampled, most densely where it changes. That changes the answer by less
            than a thousandth, but by up to a few hundredths for cycles with sharp peaks that are
            shorter than ``num_steps / 32,768`` steps. A single peak that narrow may be missed.

        Returns:
          The highest rate of the schedule, a float; inside ``jax.jit`` or ``jax.vmap`` ``f32[]``,
          and NaN if the curve cannot be read, or the schedule has values that raise an error
          outside.

        Raises:
          RangeTestError: if the curve cannot be read; the message says what to change. Inside
            ``jit`` and ``vmap`` the answer is NaN instead.
          RangeTestWarning: a warning, as for [`suggest`][].
          TypeError: if ``shape`` is not a function, or ``num_steps`` not an integer.
          ValueError: if ``num_steps`` is below 1, if the schedule cannot be traced or does not
            return a number, if one of its values is negative or not finite, or if none is above 0.

        Examples:
          >>> rates = jnp.geomspace(1e-3, 10.0, 100)
          >>> losses = (jnp.log10(rates) - jnp.log10(0.5)) ** 2  # lowest at 0.5
          >>> result = RangeTestResult(rates, losses, losses, jnp.int32(100))
          >>> peak = result.peak_for(optax.cosine_decay_schedule(1.0, 5000), 5000)
          >>> print(f"{peak / result.suggest():.2f}")
          3.08
          >>> schedule = optax.cosine_decay_schedule(peak, 5000)

        References:
          Defazio et al., [When, Why and How Much?](https://arxiv.org/abs/2310.07831), 2023,
          theorem 10.
        """
        function("shape", shape, form="step -> value")
        ratio = peak_ratio(shape, whole_number("num_steps", num_steps))
        return _number(_reading.peak(_valley(self), ratio))

    @undisturbed()
    def bounds(self) -> _reading.LRBounds:
        r"""Return the bounds of a cycle: its peak, and a quarter of it.

        $$
        \eta_\text{peak} = 1.76 \, \eta, \quad
        \eta_\text{base} = \eta_\text{peak} / 4
        $$

        with $\eta$ from [`suggest`][]; [`peak_for`][] gives the same peak for four such cycles in
        1,000 steps.

        Returns:
          ``LRBounds(base_value, peak_value)``, two floats; inside ``jax.jit`` or ``jax.vmap``
          ``f32[]``, and NaN if the curve cannot be read.

        Raises:
          RangeTestError: if the curve cannot be read; the message says what to change. Inside
            ``jit`` and ``vmap`` the answer is NaN instead.
          RangeTestWarning: a warning, as for [`suggest`][].

        Examples:
          >>> rates = jnp.geomspace(1e-3, 10.0, 100)
          >>> losses = (jnp.log10(rates) - jnp.log10(0.5)) ** 2  # lowest at 0.5
          >>> result = RangeTestResult(rates, losses, losses, jnp.int32(100))
          >>> schedule = optax_clr.triangular_schedule(*result.bounds(), rise_steps=100)
          >>> print(f"{schedule(0):.3f} {schedule(100):.3f}")
          0.042 0.168

        References:
          Smith, [Cyclical Learning Rates](https://arxiv.org/abs/1506.01186), 2017, section 3.3.
        """
        base_value, peak_value = _reading.bounds(_valley(self))
        return _reading.LRBounds(_number(base_value), _number(peak_value))

    @undisturbed()
    def summary(self) -> str:
        """Return what the test showed, in a few lines of text.

        Returns:
          The number of rows and curves, the range of rates and of the loss, and the rates that are
          read, with how near to the best such rates were elsewhere, or why it cannot be read.

        Examples:
          >>> rates = jnp.geomspace(1e-3, 10.0, 100)
          >>> losses = (jnp.log10(rates) - jnp.log10(0.5)) ** 2  # lowest at 0.5
          >>> print(RangeTestResult(rates, losses, losses, jnp.int32(100)).summary())
          Range test: 100 rows, learning rate 0.001 to 10, ended at the last rate.
          Loss: starts at 7.28; its lowest average is 0.0773.
          suggest()         0.0957  a constant rate
          bounds()          0.0421 to 0.168  a cycle's base and peak
          one_cycle_peak()  0.252  the peak of one cycle
          On six or seven of ten held-out tasks such rates were within 3x of the best.
          See 'How good are the suggestions?', how far from the best rate, in the documentation.
        """
        _refuse_traced(self, "summary")
        result = _with_defaults(self)
        return _presentation.summary(result, curve_of(result))

    @undisturbed()
    def plot(self, ax: Axes | None = None, rules: Sequence[Rule] = ()) -> Axes:
        """Draw the losses over the rates, and the rates read from them; return the Axes.

        For a single test, the losses are drawn faintly, and their average, which is what the
        methods read, as a bold line: that of the held-out losses, if there are any. For several
        curves (leading axes, such as seeds) the median of their averages is drawn, in a band from
        the lowest to the highest. [`bounds`][] is shaded, [`suggest`][] and [`one_cycle_peak`][]
        are lines. If the curve cannot be read, the title says why.

        Args:
          ax: Matplotlib Axes to draw on; ``None`` makes a new figure. Nothing is shown or saved.
          rules: functions ``(learning_rates, losses) -> rate`` whose answers are drawn too, such as
            those of [`optax_clr.peer_rules`][]. They get the smoothed losses.

        Returns:
          The Axes.

        Raises:
          ImportError: if Matplotlib is not installed.
          TypeError: if ``ax`` is not an Axes, or ``rules`` not a sequence of functions.

        Examples:
          >>> import matplotlib
          >>> matplotlib.use("agg")
          >>> rates = jnp.geomspace(1e-3, 10.0, 100)
          >>> losses = (jnp.log10(rates) - jnp.log10(0.5)) ** 2
          >>> result = RangeTestResult(rates, losses, losses, jnp.int32(100))
          >>> ax = result.plot(rules=[peer_rules.minimum])
          >>> ax.get_legend().get_texts()[-1].get_text()
          'minimum 0.051'
        """
        if not isinstance(rules, (list, tuple)):
            raise TypeError(f"rules must be a list or a tuple of functions, got {shown(rules)}.")
        for index, rule in enumerate(rules):
            function(f"rules[{index}]", rule, form="(learning_rates, losses) -> rate")
        _refuse_traced(self, "plot")
        result = _with_defaults(self)
        return _presentation.draw(result, curve_of(result), ax, rules)


def _valley(result: RangeTestResult) -> _reading.Valley:
    return _reading.read_valley(curve_of(_with_defaults(result)))


def _with_defaults(result: RangeTestResult) -> RangeTestResult:
    """Return the result with defaults for fields that are None, or that Flax turned into ``{}``."""
    defaults = RangeTestResult._field_defaults
    missing = [
        name
        for name, field in result._asdict().items()
        if name in defaults and (field is None or (isinstance(field, dict) and not field))
    ]
    return result._replace(**{name: defaults[name] for name in missing})


def _refuse_traced(result: RangeTestResult, method: str) -> None:
    if any_traced(result):
        raise TypeError(
            f"{method}() shows values, and those of a traced result are not known yet. Return the "
            f"result from jax.jit or jax.vmap, and call {method}() there."
        )


def _number(rate: float | jax.Array) -> float | jax.Array:
    """Return a rate as a Python float, which prints and serialises plainly, unless it is traced.

    Of the floats that round to the same ``float32``, it is the one with the fewest digits.
    """
    if is_traced(rate):
        return rate
    return float(np.format_float_scientific(np.float32(jax.device_get(rate))))


def _picture(result: RangeTestResult) -> str:
    """Return the figure as an HTML image; empty without Matplotlib, or for traced results."""
    figure = _drawing.hidden_figure()
    if figure is None or any_traced(result):
        return ""
    result.plot(figure.add_subplot())
    return _drawing.as_html(figure, alternative="The losses of a range test over its rates")
