// The threshold of all predictions, and how good these are as far as the examples tell.

const [slider, shown, automatic, validation] =
  ["threshold", "threshold-value", "automatic", "validation"].map((id) => document.getElementById(id));

export class Threshold {
  constructor(changed) {
    this.value = null; // null: the model's own masks
    this.own = 0.5; // the model's
    this.says = ""; // how good predictions are, shown while none is older than the marks
    this.changed = changed;
    slider.addEventListener("input", () => this.use(Number(slider.value)));
    automatic.addEventListener("click", () => this.use(null));
  }

  use(value) {
    this.value = value;
    automatic.setAttribute("aria-pressed", value === null);
    shown.textContent = value === null ? "automatic" : value.toFixed(2);
    if (value === null) slider.value = this.own;
    this.changed();
  }

  // Takes what the server says of the last time that the object was found; null before.
  learn(fit) {
    this.own = fit?.threshold ?? 0.5;
    if (this.value === null) slider.value = this.own;
    validation.textContent = this.says = fit?.validation ?? "";
  }
}
