// What the user may do next, in a sentence.

// all: images as the server describes them; arriving: uploads; running: whether the object is being
// found; names: of the classes by their numbers.
export function next({ all, arriving, running, names }) {
  const examples = all.filter((x) => x.marked.length);
  const found = all.filter((x) => x.confidence !== null && !x.stale);
  const shown = new Set(examples.flatMap((x) => x.marked));
  const missing = Object.keys(names).filter((number) => !shown.has(Number(number)));
  const step = (name, sentence) => ({ step: name, sentence });
  if (arriving) return step("add", `${arriving} more ${arriving > 1 ? "images are" : "image is"} on the way.`);
  if (!all.length) {
    return step("add", "Add images: some that show the object, and those to find it in.");
  }
  if (running) return step("find", "Looking for it in all images.");
  if (!examples.length) {
    return step("mark", `Draw on the ${names[missing[0]]} in one of the images: a rough stroke is enough.`);
  }
  if (all.length < 2) return step("add", "Add the images to find it in.");
  if (found.length < all.length) {
    const more = missing.length ? ` Nothing is marked as ${names[missing[0]]} yet.` : "";
    const again = all.some((x) => x.confidence !== null) ? "When you are done, find" : "Find";
    const first = examples.some((x) => x.background) ? "" : " A stroke on the Background helps, too.";
    return step("find", `${again} it in all images.${more || first}`);
  }
  return step("check", "Look at the results. Draw on a mask that is wrong to correct it, or download all.");
}

// A picture in words. mask: what is predicted, or null.
export function facts(picture, mask, names) {
  const [height, width] = picture.size, parts = [`${picture.name}, ${width} × ${height}`];
  if (picture.error) parts.push(picture.error);
  if (mask) {
    const counts = new Uint32Array(256);
    mask.forEach((value) => counts[value]++);
    const shares = Object.entries(names).filter(([number]) => counts[number])
      .map(([number, name]) => `${name} ${percent(counts[number] / mask.length)}`);
    parts.push(shares.length ? `found: ${shares.join(", ")} of the image` : "nothing found");
    const old = picture.stale ? " (before your last changes)" : "";
    parts.push(`confidence ${percent(picture.confidence)}${old}`);
  }
  return parts.join(" · ");
}

const percent = (share) => (share > 0 && share < 0.01 ? "<1 %" : `${Math.round(100 * share)} %`);
