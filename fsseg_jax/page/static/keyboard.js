// Keys that work wherever nothing is typed.

const TOOLS = { b: "brush", x: "box", o: "outline", e: "eraser" };

export function shortcuts(commands) {
  addEventListener("keydown", (event) => {
    if (event.defaultPrevented || document.querySelector("dialog[open]")) return;
    if (run(event, commands)) event.preventDefault();
  });
  // Arrows choose among the tools, as among radio buttons.
  document.querySelector("[role=radiogroup]").addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const buttons = [...document.querySelectorAll("[data-tool]")];
    if (!by) return;
    event.preventDefault();
    const next = buttons.at((buttons.indexOf(document.activeElement) + by) % buttons.length);
    next.focus();
    next.click();
  });
}

// Whether a key was one of these.
function run(event, commands) {
  const { key, target } = event, control = event.ctrlKey || event.metaKey;
  const typing = target.matches("input:not([type=radio], [type=checkbox], [type=range]), select");
  const letter = key.toLowerCase();
  if (control && key === "Enter") commands.find();
  else if (typing || event.altKey) return false;
  else if (control && letter === "z") event.shiftKey ? commands.redo() : commands.undo();
  else if (control && letter === "y") commands.redo();
  else if (control) return false;
  else if (letter in TOOLS) commands.useTool(TOOLS[letter]);
  else if (/^[0-9]$/.test(key)) commands.class(Number(key));
  else if (key === "[" || key === "]") commands.widen(key === "]" ? 5 : -5);
  else if (key === "+" || key === "=") commands.zoom(1.5);
  else if (key === "-") commands.zoom(1 / 1.5);
  else if (letter === "f") commands.fit();
  else if (letter === "h") commands.hide();
  else if (letter === "a") commands.accept();
  else if (key === "PageUp" || key === "PageDown") commands.neighbour(key === "PageUp" ? -1 : 1);
  else if (key === "Delete") commands.remove();
  else if (key === "?") commands.help();
  else return false;
  return true;
}
