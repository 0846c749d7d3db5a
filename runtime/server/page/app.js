// The page begins: the key if one is needed, the models, the views.

import { onKeyNeeded } from "./api.js";
import { startChat, showChat } from "./chat.js";
import { startCompare, showCompare } from "./compare.js";
import { find } from "./dom.js";
import { askForKey } from "./key.js";
import { loadModels } from "./models.js";
import { startRecite, showRecite } from "./recite.js";
import { startTabs } from "./tabs.js";
import { trying } from "./trouble.js";
import { startWriting } from "./write.js";

onKeyNeeded(askForKey);

find(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address says which view is shown
  find("[role=tabpanel]:not([hidden]) textarea").focus();
});

await trying(async () => {
  await loadModels();
  startCompare();
  startChat();
  startRecite();
  await startWriting();
});
startTabs({ compare: showCompare, chat: showChat, recite: showRecite });
document.body.dataset.ready = "true";
