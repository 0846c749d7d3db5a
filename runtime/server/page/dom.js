// Elements, made and found. Text is always text: nothing here parses HTML, so that whatever a model
// says is shown and never obeyed.

export const find = (selector, root = document) => root.querySelector(selector);

/** An element. `onclick` and the like are listeners, `style` sets properties one by one (which a
 *  strict policy allows), true and false switch an attribute, null leaves it out. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) set(element, name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** The same of a drawing. */
export function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) set(element, name, value);
  element.append(...children);
  return element;
}

function set(element, name, value) {
  if (value === null || value === false) return;
  if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
  else if (name === "style") for (const [key, to] of Object.entries(value)) element.style.setProperty(key, to);
  else if (name === "class") element.setAttribute("class", value);
  else element.setAttribute(name, value === true ? "" : value);
}

/** Says something to those who do not see it; sparingly. */
export function tell(text) {
  find("#told").textContent = text;
}
