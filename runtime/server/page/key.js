// The dialog that asks for the server's key.

import { find } from "./dom.js";

/** The key that is typed, or null. */
export function askForKey(wasWrong) {
  const dialog = find("#key-dialog"), field = find("#key");
  if (wasWrong) find("#key-told").textContent = "That is not its key; type it again.";
  field.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    find("#key-form").onsubmit = (event) => {
      event.preventDefault();
      resolve(field.value.trim());
      dialog.close();
    };
    dialog.oncancel = () => resolve(null);
  });
}
