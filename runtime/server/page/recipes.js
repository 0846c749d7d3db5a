// Prompts with examples in them: loaded into the text, where they can be changed like anything else.

import { get } from "./api.js";
import { make } from "./dom.js";

const STORY = {
  name: "story",
  title: "Story",
  prompt: "{text}",
  stop: [],
  example: "It was a dark and stormy night",
};

let recipes = [STORY];

export const recipeCalled = (name) => recipes.find((recipe) => recipe.name === name);

/** A button for each; `onChoose(recipe, text, from, to)` has the text and where the example is in it. */
export async function drawRecipes(root, onChoose) {
  recipes = [STORY, ...(await get("recipes")).data];
  const button = (recipe) => make("button", { class: "start", onclick: () => onChoose(recipe, ...filled(recipe)) }, recipe.title);
  root.replaceChildren(make("span", { class: "label" }, "Begin with"), ...recipes.map(button));
}

/** The text of a recipe with its example, and where that begins and ends. */
export function filled({ prompt, example }) {
  const from = prompt.indexOf("{text}");
  return [prompt.replace("{text}", () => example), from, from + example.length];
}

export const firstText = () => filled(STORY)[0];
