// The explorer of schedules: sliders, a curve, and the call in Python that gives it.

import { envelopes, schedules, waves } from "./schedules.mjs";

const STEPS = 1000;
const slider = (min, max, step, value) => ({ min, max, step, value });
const choice = (...options) => ({ options, value: options[0] });
const fixed = value => ({ value });

// The arguments of each schedule in the order of the call; what is fixed is not shown as a slider.
const ARGUMENTS = {
  one_cycle_schedule: {
    peak_value: fixed(1),
    total_steps: fixed(STEPS),
    init_value: slider(0, 1, 0.01, 0.04),
    end_value: slider(0, 1, 0.01, 0),
    rise_fraction: slider(0.05, 0.95, 0.05, 0.3),
    wave: choice("cosine", "linear", "welch"),
    three_phase: choice(false, true),
  },
  warmup_stable_decay_schedule: {
    peak_value: fixed(1),
    total_steps: fixed(STEPS),
    warmup_steps: slider(0, 400, 10, 50),
    decay_steps: slider(0, 600, 10, 200),
    end_value: slider(0, 1, 0.01, 0),
    decay_wave: choice("linear", "cosine", "welch"),
  },
  cyclical_schedule: {
    base_value: slider(0, 1, 0.01, 0.25),
    peak_value: fixed(1),
    rise_steps: slider(10, 500, 10, 100),
    fall_steps: slider(10, 500, 10, 100),
    wave: choice(...Object.keys(waves)),
    envelope: choice(...Object.keys(envelopes)),
    mult: slider(1, 3, 0.25, 1),
    num_cycles: slider(1, 20, 1, 20),
  },
  warm_restarts_schedule: {
    peak_value: fixed(1),
    steps: slider(100, 500, 10, 140),
    base_value: slider(0, 1, 0.01, 0),
    mult: slider(1, 3, 0.25, 2),
    peak_decay: slider(0.3, 1, 0.05, 1),
    warmup_steps: slider(0, 90, 5, 0),
    num_cycles: slider(1, 20, 1, 20),
  },
};

// What Python calls a value, where it is not a number.
const inPython = {
  wave: name => `waves.${name}`,
  decay_wave: name => `waves.${name}`,
  envelope: name => (name === "none" ? "None" : `envelopes.${name}`),
  three_phase: flag => (flag ? "True" : "False"),
};

function call(name, values) {
  const lines = Object.entries(values).map(
    ([key, value]) => `    ${key}=${(inPython[key] || String)(value)},`);
  return [`optax_clr.${name}(`, ...lines, ")"].join("\n");
}

function path(schedule) {
  const points = [];
  for (let step = 0; step <= STEPS; step++) {
    points.push(`${step},${(400 * (1 - schedule(step))).toFixed(1)}`);
  }
  return "M" + points.join("L");
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function control(key, argument, changed) {
  const shown = element("output", { textContent: argument.value });
  let input;
  if (argument.options) {
    input = element("select", {}, ...argument.options.map(
      option => element("option", { value: option, textContent: option })));
    input.addEventListener("input", () => changed(argument.options[input.selectedIndex]));
    shown.hidden = true;
  } else {
    const { min, max, step } = argument;
    input = element("input", { type: "range", min, max, step });
    input.value = argument.value; // after its limits, which would cut it
    input.addEventListener("input", () => {
      shown.textContent = input.value;
      changed(Number(input.value));
    });
  }
  return element("label", {}, element("code", { textContent: key }), input, shown);
}

function show(root, name) {
  const line = root.querySelector(".curve"), controls = root.querySelector("form");
  const code = root.querySelector("pre code");
  const values = {};
  for (const [key, argument] of Object.entries(ARGUMENTS[name])) values[key] = argument.value;
  const draw = () => {
    line.setAttribute("d", path(schedules[name](values)));
    code.textContent = call(name, values);
  };
  controls.replaceChildren();
  for (const [key, argument] of Object.entries(ARGUMENTS[name])) {
    if (!("min" in argument || "options" in argument)) continue;
    controls.append(control(key, argument, value => {
      values[key] = value;
      draw();
    }));
  }
  draw();
}

const root = document.getElementById("schedule-explorer");
const menu = root.querySelector("select");
for (const name of Object.keys(ARGUMENTS)) menu.append(element("option", { textContent: name }));
menu.addEventListener("input", () => show(root, menu.value));
show(root, menu.value);
root.hidden = false;
