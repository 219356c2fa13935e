// The list of classes: which one is marked next, their names and colours.

export class Classes {
  // chosen(number): another class is marked next; named(names): names have changed, or classes.
  constructor(list, colours, longest, { chosen, named }) {
    Object.assign(this, { list, colours, longest, chosen, named });
    this.names = {};
    this.current = 1;
  }

  show(names) {
    this.names = { ...names };
    if (!(this.current in this.names) && this.current) this.current = Number(Object.keys(names)[0]);
    this.list.replaceChildren(
      ...Object.entries(this.names).map(([number, name]) => this.row(Number(number), name)),
      this.row(0, "Background"),
    );
  }

  row(number, name) {
    const item = document.createElement("li");
    const choice = document.createElement("input");
    choice.type = "radio";
    choice.name = "class";
    choice.value = number;
    choice.checked = number === this.current;
    choice.id = `class-${number}`;
    choice.setAttribute("aria-label", `Mark ${name}`);
    choice.addEventListener("change", () => this.choose(number));
    const swatch = document.createElement("label");
    swatch.className = number ? "swatch" : "swatch background";
    swatch.htmlFor = choice.id;
    swatch.textContent = number;
    if (number) swatch.style.background = `rgb(${this.colours[number - 1]})`;
    item.append(choice, swatch, number ? this.field(number, name) : this.word(name));
    if (number && Object.keys(this.names).length > 1) item.append(this.bin(number, name));
    item.classList.toggle("current", choice.checked);
    item.addEventListener("click", (event) => {
      if (event.target.tagName !== "BUTTON") this.choose(number);
    });
    return item;
  }

  word(name) {
    const word = document.createElement("label");
    word.htmlFor = "class-0";
    word.textContent = name;
    word.className = "word";
    return word;
  }

  field(number, name) {
    const field = document.createElement("input");
    field.value = name;
    field.maxLength = this.longest;
    field.setAttribute("aria-label", `Name of class ${number}`);
    field.addEventListener("change", () => {
      if (!field.value.trim()) field.value = this.names[number];
      this.named({ ...this.names, [number]: field.value.trim() });
    });
    field.addEventListener("keydown", (event) => event.key === "Enter" && field.blur());
    return field;
  }

  bin(number, name) {
    const button = document.createElement("button");
    button.textContent = "×";
    button.title = `Remove ${name} and its marks`;
    button.setAttribute("aria-label", button.title);
    button.addEventListener("click", () => {
      if (!confirm(`Remove ${name} and its marks in all images for good?`)) return;
      const { [number]: _, ...others } = this.names;
      this.named(others);
    });
    return button;
  }

  choose(number) {
    if (number && !(number in this.names)) return;
    this.current = number;
    for (const item of this.list.children) {
      const choice = item.querySelector("[type=radio]");
      choice.checked = Number(choice.value) === number;
      item.classList.toggle("current", choice.checked);
    }
    this.chosen(number);
  }

  // Adds a class, with the first free number, to be named.
  async add() {
    const number = this.colours.findIndex((_, i) => !(i + 1 in this.names)) + 1;
    if (!number) return;
    let name = `class ${number}`;
    while (Object.values(this.names).includes(name)) name += "'";
    this.current = number;
    await this.named({ ...this.names, [number]: name });
    const field = this.list.querySelector(`#class-${number} ~ input`);
    field.focus();
    field.select();
  }
}
