// The values of the schedules of optax_clr, for the explorer. They follow the formulas of the API pages;
// tests/test_explorer.py compares them with the library.

export const waves = {
  linear: height => height,
  cosine: height => (1 - Math.cos(Math.PI * height)) / 2,
  welch: height => height * (2 - height),
};

export const envelopes = {
  none: () => 1,
  halving: cycle => 2 ** -cycle,
  "exponential(0.998)": (cycle, step) => 0.998 ** step,
};

const between = (low, high, height) => low + (high - low) * height;

// As Python rounds: a half goes to the even neighbour.
function round(number) {
  const below = Math.floor(number), rest = number - below;
  return rest < 0.5 || (rest === 0.5 && below % 2 === 0) ? below : below + 1;
}

// The cycle of a step, the position in it, and its length. After the last cycle: the end of that.
function place(step, { steps, mult = 1, num_cycles = Infinity }) {
  let cycle = 0, start = 0, length = steps;
  while (step >= start + length) {
    if (cycle + 1 >= num_cycles) return { cycle, position: length, length };
    start += length;
    cycle += 1;
    length = Math.max(1, round(steps * mult ** cycle));
  }
  return { cycle, position: step - start, length };
}

export const schedules = {
  cyclical_schedule({ base_value, peak_value, rise_steps, fall_steps, wave, envelope, mult, num_cycles }) {
    const steps = rise_steps + fall_steps;
    return step => {
      const { cycle, position, length } = place(step, { steps, mult, num_cycles });
      const peak = length * rise_steps / steps;
      const height = position < peak ? position / peak : (length - position) / (length - peak);
      return between(base_value, peak_value, waves[wave](height) * envelopes[envelope](cycle, step));
    };
  },

  warm_restarts_schedule({ peak_value, steps, base_value, mult, peak_decay, warmup_steps, num_cycles }) {
    return step => {
      const { cycle, position, length } = place(step, { steps, mult, num_cycles });
      const peak = Math.max(peak_value * peak_decay ** cycle, base_value);
      if (position < warmup_steps) return between(base_value, peak, position / warmup_steps);
      const left = (length - position) / (length - warmup_steps);
      return between(base_value, peak, waves.cosine(left));
    };
  },

  one_cycle_schedule({ peak_value, total_steps, init_value, end_value, rise_fraction, wave, three_phase }) {
    const last = total_steps - 1, peak = rise_fraction * total_steps - 1;
    const phases = three_phase
      ? [[0, init_value], [peak, peak_value], [2 * peak, init_value], [last, end_value]]
      : [[0, init_value], [peak, peak_value], [last, end_value]];
    return step => {
      for (let i = 1; i < phases.length; i++) {
        const [[from, first], [to, second]] = [phases[i - 1], phases[i]];
        if (step > to) continue;
        const low = Math.min(first, second), high = Math.max(first, second);
        const part = (step - from) / (to - from);
        return between(low, high, waves[wave](second > first ? part : 1 - part));
      }
      return end_value;
    };
  },

  warmup_stable_decay_schedule({ peak_value, total_steps, warmup_steps, decay_steps, end_value, decay_wave }) {
    return step => {
      if (step >= total_steps) return end_value;
      if (step < warmup_steps) return peak_value * step / warmup_steps;
      if (step < total_steps - decay_steps) return peak_value;
      return between(end_value, peak_value, waves[decay_wave]((total_steps - step) / decay_steps));
    };
  },
};
